"""The manifest for KubeRay is one that its API server accepts, and agrees with ray_cluster.yaml and the Dockerfile."""

import gzip
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from engine import load_spec
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(30)

FOLDER = ROOT / "pipelines" / "cluster"
#: KubeRay's own schema of a RayJob, from ray-project/kuberay at commit feeaf72 (Apache-2.0).
SCHEMA = ROOT / "tests" / "support" / "rayjobs.v1.schema.json.gz"


def manifest() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "kubernetes" / "rayjob.yaml").read_text())


def strict(schema: Any) -> Any:
    """The schema as an API server reads it, which refuses fields that have no name there."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def faults(document: dict[str, Any]) -> list[str]:
    schema = strict(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def test_kuberay_accepts_the_manifest():
    document = manifest()
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    assert faults(document) == []


def test_the_schema_would_find_a_misspelt_field_and_a_wrong_type():
    document = manifest()
    document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    document["spec"]["backoffLimit"] = "many"
    found = "\n".join(faults(document))
    assert "'replica' was unexpected" in found
    assert "$.spec.backoffLimit: 'many' is not of type 'integer'" in found


def test_the_groups_have_the_labels_and_gpus_of_the_cluster_file_and_the_spec():
    cluster = manifest()["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    nodes = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    assert {*groups, "head"} == set(nodes)
    for name, group in groups.items():
        assert group["labels"] == nodes[name]["labels"]
        assert group["replicas"] == nodes[name]["min_workers"]
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == nodes[name]["resources"]["GPU"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    words = manifest()["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "engine", "run"]
    labels = load_spec(ROOT / words[4]).cluster
    assert labels.training_labels == groups["training"]["labels"]
    assert labels.source_model_labels == groups["source-models"]["labels"]


def test_every_pod_has_the_image_the_token_and_shared_memory():
    cluster = manifest()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "knowledge-fusion-ray-token"}
    ray_pin = re.search(r"^ray==(.*)$", (ROOT / "requirements" / "cuda.txt").read_text(), re.MULTILINE)
    assert ray_pin and cluster["rayVersion"] == ray_pin[1]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "knowledge-fusion-engine:cuda"
        assert "HF_TOKEN" in {variable["name"] for variable in container["env"]}
        assert {"name": "shared-memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


def test_the_image_holds_what_is_there():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"engine", "actors", "pipelines", "requirements/cuda.txt"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []

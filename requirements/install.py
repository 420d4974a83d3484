"""Install the pinned set of one device into .venv.

    python3.11 requirements/install.py cpu|cuda

The default package index serves PyTorch as a CUDA build alone, and that build does not import on a machine without
CUDA's libraries. So ``cpu.txt`` pins the CPU build, ``torch==VERSION+cpu``, and two ways lead to it. uv knows PyTorch's
own index. Where uv cannot reach that index, pip finds the build in the folders and indexes of its configuration.
Everything else, the whole CUDA set included, comes from the default index: by uv, or by pip where uv fails.

.venv is emptied first, so that half an installation is never taken for a whole one. Downloads stay in the caches of uv
and pip. The Makefile writes its stamp after this script has ended well, and only then.
"""

from __future__ import annotations  # an older Python gets as far as the sentence about its version

import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent / ".venv"
PYTHON = str(ENVIRONMENT / "bin" / "python")
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
PYTHON_VERSIONS = ((3, 11), (3, 12))


def install(device: str) -> None:
    """Fill .venv with ``requirements/{device}.txt`` and print in one line what came from where."""
    file = HERE / f"{device}.txt"
    pins = pinned(file)
    print(
        f"set-up: installing {len(pins)} packages, the {DEVICES[device]} set, into .venv; this takes minutes",
        flush=True,
    )
    make_environment()
    os.environ.update(trusted_certificates())
    by_pip("--retries", "1", pins["uv"])  # where pip does not find uv, it does uv's work below
    torch_installer = install_torch(pins["torch"], device)
    installer = install_all(file)
    print(f"set-up: {torch_in_use(device)} {torch_installer}; everything else by {installer}", flush=True)


def pinned(file: Path) -> dict[str, str]:
    """The lines of a pinned set, by package."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return {line.split("==")[0]: line for line in lines}


def make_environment() -> None:
    """Make an empty .venv with pip."""
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        fail(f"{sys.executable} is Python {sys.version.split()[0]}; name a Python 3.11 or 3.12: make PYTHON=python3.11")
    if fault := run(sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)):
        fail(f"{sys.executable} cannot make a virtual environment ({fault}); install its modules venv and ensurepip")


def trusted_certificates() -> dict[str, str]:
    """The variables that make uv, and pip before 24.2, trust this machine's certificates, such as its proxy's.

    Both bring certificates of their own. One that pip is configured with stays in force.
    """
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or (paths.capath and os.listdir(paths.capath))):
        return {}
    configuration = subprocess.run([PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    of_pip = {} if "cert=" in configuration else {"PIP_CERT": paths.cafile or paths.capath}
    return {"UV_SYSTEM_CERTS": "true", **of_pip}


def install_torch(pin: str, device: str) -> str:
    """Install PyTorch alone, first, so that a missing build ends the set-up early. Return how it was found."""
    # PyTorch's own index has several CUDA builds; the CUDA set pins the libraries of the one on the default index.
    backend = ["--torch-backend", "cpu"] if device == "cpu" else []
    if not (uv_fault := by_uv(*backend, pin)):
        return "from its own index by uv" if backend else "by uv"
    if not (pip_fault := by_pip(pin)):
        return "by pip as this machine configures it, since uv does not reach an index that has it"
    fail(
        f"found no {pin}, by uv ({uv_fault}) or by pip ({pip_fault}); connect this machine to the internet, or name a "
        "folder or an index that has this build in PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL; then run the command again"
    )


def install_all(file: Path) -> str:
    """Install the set, less what is there already. Return which installer did it."""
    # With bytecode of all that is there, as pip does it: where Python may not write any, each of a run's many processes
    # would compile its imports again.
    if not (uv_fault := by_uv("--compile-bytecode", "--requirement", str(file))):
        return "uv"
    if not (pip_fault := by_pip("--requirement", str(file))):
        return "pip as this machine configures it"
    fail(
        f"could not install requirements/{file.name}, by uv ({uv_fault}) or by pip ({pip_fault}); "
        "run the command again, finished downloads are kept"
    )


def by_uv(*what: str) -> str:
    """Install with uv. Return the fault in one line, or nothing."""
    return run(PYTHON, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", PYTHON, *what)


def by_pip(*what: str) -> str:
    """Install with pip. Return the fault in one line, or nothing."""
    return run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *what)


def torch_in_use(device: str) -> str:
    """The version that .venv's PyTorch reports, which shows that it imports."""
    code = "import torch; print(torch.__version__, torch.cuda.device_count())"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    if done.returncode:
        fail(f"PyTorch is installed and does not import ({last_line(done.stderr)}); try make DEVICE=cpu")
    version, gpus = done.stdout.split()
    return f"{DEVICES[device]}, PyTorch {version}" + (f" that sees {gpus} GPUs," if device == "cuda" else "")


def run(*command: str) -> str:
    """Run a command. Return the last line that it wrote if it failed, else nothing."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return last_line(done.stdout) if done.returncode else ""


def last_line(text: str) -> str:
    """The last line with words in it; a failure always has one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def fail(sentence: str) -> NoReturn:
    sys.exit(f"set-up: {sentence}")


if __name__ == "__main__":
    try:
        install(sys.argv[1])
    except KeyboardInterrupt:
        fail("interrupted; the same command starts it again, finished downloads are kept")

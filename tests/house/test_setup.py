"""The set-up on machines of every kind: who reaches which index, which device, which Python.

The Makefile, the installer and uv are the real ones; the indexes are stand-ins on this machine, with tiny wheels.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.package_index import Authority, serve, write_wheel
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(300)  # each set-up makes an environment with pip: 7 s of one free core
NOWHERE = "http://127.0.0.1:9"  # the discard port, where no proxy listens
TORCH = "__version__ = {version!r}\nclass cuda:\n    device_count = staticmethod(lambda: {gpus})\n"
UV = "import os, sys\nos.execv({real!r}, [{real!r}, *sys.argv[1:]])\n"


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile, the installer and two short pinned sets."""
    folder = tmp_path / "checkout"
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "requirements" / "install.py", folder / "requirements")
    (folder / "requirements" / "cpu.txt").write_text("# short\ntiny==1.0\ntorch==2.13.0+cpu\nuv==1.0\n")
    (folder / "requirements" / "cuda.txt").write_text("# short\ntiny==1.0\ntorch==2.13.0\nuv==1.0\n")
    return folder


@pytest.fixture
def index(tmp_path):
    """The default index, with the CUDA build of torch alone; its uv is a door to the real one."""
    pages = tmp_path / "default" / "simple"
    write_wheel(pages / "tiny", "tiny", "1.0", {"tiny.py": ""})
    write_wheel(pages / "torch", "torch", "2.13.0", {"torch.py": TORCH.format(version="2.13.0+cu130", gpus=2)})
    real = str(Path(sys.executable).with_name("uv"))
    write_wheel(pages / "uv", "uv", "1.0", {"uv/__init__.py": "", "uv/__main__.py": UV.format(real=real)})
    with serve(tmp_path / "default") as server:
        yield server


def write_cpu_build(folder: Path) -> None:
    write_wheel(folder, "torch", "2.13.0+cpu", {"torch.py": TORCH.format(version="2.13.0+cpu", gpus=0)})


def set_up(checkout: Path, index, device: str = "cpu", **variables: str) -> subprocess.CompletedProcess:
    """Make the stamp of ``device`` where pip and uv know nothing but ``index`` and ``variables``."""
    url = f"http://127.0.0.1:{index.server_port}/simple"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(checkout),
        "PYTHON": sys.executable,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": url,
        "UV_DEFAULT_INDEX": url,
        "UV_NO_CONFIG": "1",
        "UV_HTTP_RETRIES": "0",
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1",
    } | variables
    command = ["make", f".venv/installed-{device}", f"DEVICE={device}"]
    return subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=140)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_uv_takes_the_cpu_build_from_the_index_of_pytorch(checkout, index, tmp_path):
    write_cpu_build(tmp_path / "pytorch" / "whl" / "cpu" / "torch")
    authority = Authority(tmp_path)
    with serve(tmp_path / "pytorch", authority) as proxy:
        address = f"http://127.0.0.1:{proxy.server_port}"
        done = set_up(checkout, index, HTTPS_PROXY=address, SSL_CERT_FILE=str(authority.certificate))
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done.stdout) == "set-up: CPU, PyTorch 2.13.0+cpu from its own index by uv; everything else by uv"
    assert any(path.endswith(".whl") for path in proxy.asked)
    assert set_up(checkout, index).stdout.strip() == "make: '.venv/installed-cpu' is up to date."


def test_pip_takes_the_cpu_build_where_uv_does_not_reach_that_index(checkout, index, tmp_path):
    write_cpu_build(tmp_path / "wheels")
    done = set_up(checkout, index, PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done.stdout) == (
        "set-up: CPU, PyTorch 2.13.0+cpu by pip as this machine configures it, "
        "since uv does not reach an index that has it; everything else by uv"
    )


def test_a_failed_set_up_starts_again_and_pip_may_do_it_all(checkout, index, tmp_path):
    done = set_up(checkout, index)
    assert done.returncode != 0
    assert "set-up: found no torch==2.13.0+cpu, by uv (" in done.stderr
    assert "connect this machine to the internet, or name a folder or an index that has this build in" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any("torch" in path and path.endswith(".whl") for path in index.asked)  # no CUDA build, gigabytes of it
    assert not (checkout / ".venv" / "installed-cpu").exists()

    left_over = checkout / ".venv" / "left-over"
    left_over.touch()
    write_cpu_build(tmp_path / "wheels")
    links = str(tmp_path / "wheels")
    done = set_up(checkout, index, PIP_FIND_LINKS=links, UV_DEFAULT_INDEX=f"{NOWHERE}/simple")
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done.stdout).endswith("; everything else by pip as this machine configures it")
    assert (checkout / ".venv" / "installed-cpu").exists() and not left_over.exists()


def test_the_cuda_set_comes_from_the_default_index(checkout, index):
    done = set_up(checkout, index, device="cuda")
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done.stdout) == (
        "set-up: CUDA, PyTorch 2.13.0+cu130 that sees 2 GPUs, by uv; everything else by uv"
    )


def write_program(folder: Path, name: str, line: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def planned(checkout: Path, programs: Path, *arguments: str) -> subprocess.CompletedProcess:
    """What make would do where ``programs`` come first on PATH and no variable chooses for it."""
    path = f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
    command = ["make", "--dry-run", "test", *arguments]
    return subprocess.run(command, cwd=checkout, env={"PATH": path}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("answer", "device"),
    [
        ("echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'", "cuda"),
        ("echo 'No devices were found'", "cpu"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", "cpu"),
        ("exit 127", "cpu"),
    ],
)
def test_the_device_is_what_the_machine_has(checkout, tmp_path, answer, device):
    write_program(tmp_path / "programs", "nvidia-smi", answer)
    write_program(tmp_path / "programs", "python3.11", "exit 0")
    assert f"python3.11 requirements/install.py {device}\n" in planned(checkout, tmp_path / "programs").stdout
    by_hand = planned(checkout, tmp_path / "programs", "DEVICE=cpu").stdout
    assert "python3.11 requirements/install.py cpu\n" in by_hand


def test_an_unknown_device_is_refused(checkout, tmp_path):
    done = planned(checkout, tmp_path, "DEVICE=tpu")
    assert done.returncode != 0 and 'DEVICE is "tpu"; it can be cpu or cuda' in done.stderr


def test_the_first_python_that_fits_is_taken(checkout, tmp_path):
    for name in ("python3.11", "python3", "python"):
        write_program(tmp_path / "programs", name, "exit 1")
    write_program(tmp_path / "programs", "python3.12", "exit 0")
    assert "\npython3.12 requirements/install.py" in "\n" + planned(checkout, tmp_path / "programs").stdout
    write_program(tmp_path / "programs", "python3.12", "exit 1")
    done = planned(checkout, tmp_path / "programs")
    assert done.returncode != 0 and "no Python 3.11 or 3.12 with its modules venv and ensurepip" in done.stderr
    assert "name one: make PYTHON=/path/to/python" in done.stderr


def test_another_python_is_refused(checkout, tmp_path):
    program = "import sys, runpy; sys.version_info = (3, 13, 0); sys.argv = ['install.py', 'cpu']; "
    program += "runpy.run_path('requirements/install.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "name a Python 3.11 or 3.12: make PYTHON=python3.11" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("user", [0, 1000])
def test_the_browser_is_installed_by_root_where_none_answers(tmp_path, user):
    seen, programs = tmp_path / "seen", tmp_path / "programs"
    write_program(programs, "id", f"echo {user}")
    write_program(programs, "sudo", f'echo sudo >> {seen}; shift; exec "$@"')
    write_program(programs, "apt-get", f"echo $DEBIAN_FRONTEND $* >> {seen}")
    assert install_by("chromium.sh", programs) == ""
    asked = "noninteractive -qq update\nnoninteractive -qq -o DPkg::Lock::Timeout=120 install --yes "
    asked += "--no-install-recommends chromium\n"
    assert seen.read_text().replace("sudo\n", "") == asked
    assert seen.read_text().count("sudo\n") == (2 if user else 0)

    write_program(programs, "chromium", "exit 0")
    seen.unlink()
    assert install_by("chromium.sh", programs) == "" and not seen.exists()


@pytest.mark.parametrize("fault", ["E: Unable to locate package chromium", "sudo: a password is required"])
def test_a_machine_without_a_browser_and_without_root_says_so(tmp_path, fault):
    write_program(tmp_path / "programs", "id", "echo 1000")
    write_program(tmp_path / "programs", "sudo", f"echo warning; echo '{fault}' >&2; exit 1")
    assert install_by("chromium.sh", tmp_path / "programs") == (
        f"no Chromium answers here, and apt-get cannot install it as root ({fault}); install it by hand, or the tests "
        "that open a report in a browser are left out\n"
    )


@pytest.mark.parametrize("user", [0, 1000])
def test_prometheus_is_unpacked_where_none_answers(tmp_path, user):
    programs = tmp_path / "programs"
    write_program(programs, "id", f"echo {user}")
    write_program(programs, "sudo", 'echo sudo >> seen; shift; exec "$@"')
    write_program(programs, "apt-get", "echo $* >> seen; [ $2 = update ] || echo a package > prometheus_2_amd64.deb")
    write_program(
        programs, "dpkg", "echo $* >> seen; mkdir -p usr/bin; echo echo 2 > usr/bin/promtool; chmod +x usr/bin/*"
    )
    assert install_by("prometheus.sh", programs) == ""
    folder = tmp_path / ".venv" / "prometheus"
    assert (tmp_path / "seen").read_text() == "sudo\n" * bool(user) + "-qq update\n"
    assert (folder / "seen").read_text() == "-qq download prometheus\n-x prometheus_2_amd64.deb .\n"
    assert not list(folder.glob("*.deb"))

    (tmp_path / "seen").unlink()
    assert install_by("prometheus.sh", programs) == "" and not (tmp_path / "seen").exists()


def test_a_machine_without_prometheus_and_without_root_says_so(tmp_path):
    write_program(tmp_path / "programs", "id", "echo 1000")
    write_program(tmp_path / "programs", "sudo", "echo 'sudo: a password is required' >&2; exit 1")
    assert install_by("prometheus.sh", tmp_path / "programs") == (
        "no promtool answers here, and apt-get cannot fetch Debian's package prometheus "
        "(sudo: a password is required); install it by hand, or the tests of alerts and dashboard are left out\n"
    )


def install_by(script: str, programs: Path) -> str:
    """What a script says where ``programs`` are all that there is, and the shell's own; it works beside them."""
    for name in ("chmod", "env", "mkdir", "rm", "tail"):
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "requirements" / script)],
        cwd=programs.parent,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout

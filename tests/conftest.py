"""What every test runs with: one thread for each library; a process group, an undisturbed run where a test asks."""

import os

import pytest

# Set before any of these libraries is imported, because each reads its limit once; subprocesses inherit the limits.
# With more threads than free cores, tests of a few seconds ran into their time limits.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Each process of pytest-xdist keeps its own compiled kernels: numba's cache is not made for two writers at once.
if "PYTEST_XDIST_WORKER" in os.environ:
    _cache = os.path.expanduser("~/.cache/knowledge-fusion-engine")
    os.environ["NUMBA_CACHE_DIR"] = f"{_cache}/kernels-{os.environ['PYTEST_XDIST_WORKER']}"


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A process group of this process alone, which a sharded target model needs."""
    import torch.distributed as dist

    store = tmp_path_factory.mktemp("process-group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The curve of a run that nothing disturbs, on one machine and local files; made once for each set of overrides."""
    from tests.support.interrupted_runs import InterruptedRun

    curves = {}

    def curve(*overrides: str) -> list[tuple[float, ...]]:
        if overrides not in curves:
            with InterruptedRun(tmp_path_factory.mktemp("undisturbed"), *overrides).start() as run:
                assert run.wait() == 0, run.log
                run.check_exactly_once()
                curves[overrides] = run.curve
        return curves[overrides]

    return curve

"""An error that a stage raises on purpose reaches the driver through real Ray as it was raised, without a traceback."""

import pyarrow as pa
import pytest
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from engine.errors import Fault, FusionError, PreflightError, SourceModelError
from pipelines.cluster.failures import readable_errors
from pipelines.stream.deferred import Deferred
from pipelines.stream.training import tune

pytestmark = pytest.mark.timeout(150)

SENTENCE = "gpt2-code: its replicas have died;\nlook into Ray's logs"
FAULTS = PreflightError([Fault("a.b", "1 is wrong", "use 2"), Fault("c", "is missing")])


@pytest.fixture(autouse=True)
def as_in_a_run(shared_ray):
    """Ray Data with a run's settings."""
    with DataContext.current(DataContext.get_current().copy()):
        tune(DataContext.get_current())
        yield


class RefusesAtTheStart:
    def __init__(self, error: FusionError):
        raise error


class Stage:
    """A stage whose worker may refuse while it is made."""

    def __init__(self, error: FusionError):
        self._work = Deferred(RefusesAtTheStart, error=error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._work(batch)


class RefusesABatch:
    def __init__(self, error: FusionError):
        self._error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        raise self._error


class RefusesWithinABatch(RefusesABatch):
    def __call__(self, batch: pa.Table):
        yield batch
        raise self._error


@pytest.mark.parametrize("error", [SourceModelError(SENTENCE), FAULTS])
@pytest.mark.parametrize("stage", [Stage, RefusesABatch, RefusesWithinABatch])
def test_an_error_of_a_stage_arrives_as_it_was_raised(stage, error, capfd):
    stream = ray.data.range(4).map_batches(
        stage,
        fn_constructor_kwargs={"error": error},
        batch_format="pyarrow",
        num_cpus=1,
        compute=ActorPoolStrategy(size=1),
    )
    with pytest.raises(type(error)) as caught, readable_errors():
        stream.take_all()
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert "infinite retries" not in "".join(capfd.readouterr())

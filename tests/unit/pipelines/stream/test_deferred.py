"""A worker's constructor may fail; the first call says so."""

import pytest

from engine.errors import FusionError, SourceModelError
from pipelines.stream.deferred import Deferred

pytestmark = pytest.mark.timeout(30)


def adds(summand: int):
    return lambda number: number + summand


def fails(error: Exception):
    raise error


def test_a_worker_that_was_made_is_called():
    assert Deferred(adds, summand=2)(40) == 42


@pytest.mark.parametrize("error", [SourceModelError("no model"), ConnectionError("no store")])
def test_an_error_on_purpose_and_one_of_a_store_stay_what_they_are(error):
    worker = Deferred(fails, error=error)
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            worker(1)
        assert raised.value is error


def test_any_other_error_would_come_again_and_ends_the_run():
    with pytest.raises(FusionError, match=r"^fails cannot start: ImportError: no gptqmodel$"):
        Deferred(fails, error=ImportError("no gptqmodel"))(1)

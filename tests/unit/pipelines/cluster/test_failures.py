"""Errors cross process borders and arrive as sentences."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from engine.errors import Fault, FusionError, PreflightError, RecordError, SourceModelError, SpecError
from pipelines.cluster.failures import readable_errors


@pytest.mark.parametrize(
    "error",
    [
        SpecError([Fault("a.b", "1 is wrong", "use 2")]),
        PreflightError([Fault("a", "x"), Fault("b", "y")]),
        RecordError("row 3"),
        SourceModelError("no model"),
    ],
)
def test_an_error_survives_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert isinstance(copy, FusionError)


def test_all_faults_are_listed():
    text = str(SpecError([Fault("a.b", "1 is wrong", "use 2"), Fault("c", "is missing")]))
    assert text.splitlines() == [
        "the spec cannot be used (2 faults):",
        "  - a.b: 1 is wrong; use 2",
        "  - c: is missing",
    ]


class _WorkersFailed(Exception):
    def __init__(self, worker_failures):
        self.worker_failures = worker_failures


def test_the_sentence_inside_nested_failures_comes_out():
    task = RuntimeError("task failed")
    task.cause = RecordError("corpus.jsonl, row 7: is not JSON")
    with pytest.raises(RecordError, match="row 7"), readable_errors():
        raise _WorkersFailed({0: task})


def test_a_failure_without_a_sentence_names_its_root():
    def fail():
        try:
            raise ZeroDivisionError("division by zero")
        except ZeroDivisionError as error:
            raise RuntimeError("outer") from error

    with pytest.raises(FusionError, match="ZeroDivisionError: division by zero"), readable_errors():
        fail()


def test_advice_that_ray_data_appends_is_left_out():
    error = RecordError("row 3")
    error.args = (f"{error.args[0]}\nFailed to apply UDF transform after 1/1 attempts",)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "row 3"


def test_an_error_of_a_task_arrives_as_it_was_raised():
    error = RayTaskError("score", "Traceback\nSourceModelError: gone", SourceModelError("gone")).as_instanceof_cause()
    with pytest.raises(SourceModelError, match=r"^gone$") as raised, readable_errors():
        raise error
    assert type(raised.value) is SourceModelError


def test_another_failure_of_an_actor_keeps_its_own_words():
    error = ActorDiedError(RayTaskError("__init__", "Traceback\nValueError: no", ValueError("no")))
    with pytest.raises(FusionError, match="ValueError: no") as raised, readable_errors():
        raise error
    assert type(raised.value) is FusionError

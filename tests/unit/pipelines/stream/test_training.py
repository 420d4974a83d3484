"""The hand-over to Ray Train: which settings it gets, and how Ctrl-C ends it."""

import signal
import sys
from types import SimpleNamespace

import pytest

from engine import load_spec
from pipelines.stream import training
from pipelines.stream.sizes import derive_flow
from pipelines.stream.training import _interruptible
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(60)


def test_ctrl_c_is_an_interrupt_and_python_has_its_handler_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _interruptible():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_retired_source_has_another_trainer_follow_until_one_retires_none(tmp_path, monkeypatch):
    histories = [[step_record(1)], [step_record(1), step_record(2, retired=("gpt2-code",))]]
    histories.append([*histories[-1], step_record(3, retired=("llama-docs",)), step_record(4)])
    histories.append([*histories[-1], step_record(5)])
    recorded, left = iter(histories), iter(histories[1:])
    monkeypatch.setattr(training, "recorded_steps", lambda _: next(recorded))
    trainer = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=tuple(next(left))))
    monkeypatch.setattr(training, "_trainer", lambda *_: trainer)
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"run.output_dir={tmp_path}"])
    assert training.train(spec, flow=None, monitor=None) == tuple(histories[-1])
    assert list(left) == []


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "nccl")])
def test_workers_wait_for_one_another_as_long_as_the_spec_says(tmp_path, monkeypatch, gpus, backend):
    """PyTorch's own limit, half an hour, would end a step while a reader catches up."""
    given = {}

    class Trainer:
        def __init__(self, _loop, **settings):
            given.update(settings)

        def fit(self):
            return self

        return_value = ()

    monkeypatch.setattr(training, "TorchTrainer", Trainer)
    overrides = [f"run.output_dir={tmp_path}", "training.collective_timeout_hours=2.5"]
    overrides += [f"training.num_gpus_per_worker={gpus}", "cluster.training_labels={pool: training}"]
    spec = load_spec("pipelines/specs/quickstart.yaml", overrides)
    training.train(spec, derive_flow(spec), monitor=None)
    assert (given["torch_config"].backend, given["torch_config"].timeout_s) == (backend, 9000)
    assert given["scaling_config"].label_selector == {"pool": "training"}
    assert given["scaling_config"].use_gpu == bool(gpus)


def test_the_monitor_hears_of_every_stream_where_it_begins(tmp_path, monkeypatch):
    begun, histories = [], iter([[], [step_record(1), step_record(2, retired=("gpt2-code",))]])
    monitor = SimpleNamespace(begin_stream=SimpleNamespace(remote=lambda *arguments: begun.append(arguments)))
    monkeypatch.setattr(training, "recorded_steps", lambda _: next(histories))
    monkeypatch.setattr(training, "fused_blocks", lambda *_: None)
    monkeypatch.setattr(training, "TorchTrainer", lambda _loop, **settings: SimpleNamespace(**settings))
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"run.output_dir={tmp_path}"])
    stream = training._trainer(spec, derive_flow(spec), [], monitor).datasets["train"]
    stream()
    stream()
    assert [(retired, step and step.step) for retired, step in begun] == [((), None), (("gpt2-code",), 2)]

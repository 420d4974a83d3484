"""Whatever dies and whenever: every passage is learned exactly once, and the losses are those of an undisturbed run.

By itself all of them in one run of three starts; each alone and at three moments with KNOWLEDGE_FUSION_CHAOS=full.
"""

import os
import random
import re
import signal
import time

import psutil
import pytest

from tests.support.interrupted_runs import TRANSFORMERS, VLLM, InterruptedRun, kill_group

FULL = os.environ.get("KNOWLEDGE_FUSION_CHAOS") == "full"
MOMENTS = range(3)
only_full = pytest.mark.skipif(not FULL, reason="one of the many: KNOWLEDGE_FUSION_CHAOS=full")

#: Names of processes whose work Ray does again elsewhere: the run itself goes on.
REPLACED = {
    "training worker": "RayTrainWorker",
    "aligner": "Aligner",
    "reader": "PassageReader",
    "source replica": "SourceModel",
}

#: Seconds from their start, loading included, within which they surely live.
SOON_DONE = {"reader": 1.0, "source replica": 4.0, "aligner": 4.0}

pytestmark = pytest.mark.timeout(1200)


def wait_for_moment(run: InterruptedRun, victim: str, moment: int) -> None:
    """A drawn checkpoint and a drawn time after it; of the stages before training, a drawn time after their start."""
    draw = random.Random(f"{victim} {moment}")
    if victim in SOON_DONE:
        run.wait_for(lambda: run.processes(REPLACED[victim]))
        seconds = draw.uniform(0.0, SOON_DONE[victim])
        print(f"{victim}, moment {moment}: {seconds:.2f} s after its start")
    else:
        step, seconds = draw.randrange(2, 25), draw.uniform(0.0, 0.5)
        print(f"{victim}, moment {moment}: {seconds:.2f} s after the checkpoint of step {step}")
        run.wait_for_step(step)
    time.sleep(seconds)


def kill_one(run: InterruptedRun, victim: str) -> set[int]:
    """Kill the youngest process of a kind; the ids of all that there were."""
    found = [process.pid for process in run.processes(REPLACED[victim])]
    os.kill(found[-1], signal.SIGKILL)
    return set(found)


def wait_for_replacement(run: InterruptedRun, victim: str, earlier: set[int]) -> None:
    """Wait until a process that is none of the ``earlier`` ones has started, which it reports to the run monitor."""
    new = run.wait_for(lambda: [item for item in run.processes(REPLACED[victim]) if item.pid not in earlier])
    run.wait_for(lambda: not is_being_made(new[0]))


def is_being_made(process: psutil.Process) -> bool:
    """Whether an actor's constructor is still at work, which Ray writes into the process's title."""
    try:
        return "__init__" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it was made, and its work is done
        return False


def replaced(run: InterruptedRun, stage: str) -> list[str]:
    """What the report says about the dead of a stage: of how many replicas, depends on how far the last stream came."""
    return re.findall(rf'<th scope="row">{stage}</th>.*<td>\d+ \((\d+ replaced)\)</td>', run.report)


def interrupt(run: InterruptedRun) -> None:
    """Ctrl-C, as a terminal sends it."""
    kill_group(run.process, signal.SIGINT)
    check_stopped(run)


def check_stopped(run: InterruptedRun) -> None:
    """The run has ended with a sentence."""
    assert run.wait() == 1, run.log
    assert "stopped; the same command goes on from the last checkpoint" in run.log
    assert "Traceback" not in run.log
    assert "Fatal Python error" not in run.log


def test_sigterm_stops_a_run_as_ctrl_c_does(tmp_path):
    no_sources = ("source_models=[]", "objective.lm_loss_weight=1.0")
    with InterruptedRun(tmp_path, *no_sources).start() as run:
        run.wait_for_step(2)
        os.kill(run.process.pid, signal.SIGTERM)
        check_stopped(run)


def test_ctrl_c_then_the_driver_then_the_fork_server_and_all_that_are_replaced(tmp_path, undisturbed):
    with InterruptedRun(tmp_path, TRANSFORMERS).start() as run:
        run.wait_for_step(4)
        interrupt(run)
        run.start().wait_for_step(10)
        run.wait_for(lambda: "running, step" in run.report)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        before = run.state
        assert re.search(r"running, step \d+ .*last written \d", run.report, re.DOTALL), "a killed run's page opens"
        run.start("source_models.0.replicas=2")
        for moment, victim in enumerate(("source replica", "aligner")):
            wait_for_moment(run, victim, moment)
            earlier = kill_one(run, victim)
        wait_for_replacement(run, "aligner", earlier)  # a dead worker ends the stream, and who dies with it is lost
        run.wait_for_step(before["step"] + 4)
        forks = run.wait_for(lambda: run.processes("fork_server"))[0].pid
        kill_one(run, "training worker")
        os.kill(forks, signal.SIGKILL)  # those that start from here on start without it
        assert run.wait() == 0, run.log
        assert 10 <= before["step"] < run.state["step"]
        assert run.state["history"][: before["step"]] == before["history"]
        run.check_exactly_once()
        assert run.curve == undisturbed(TRANSFORMERS)
        # The source's replacement may not have started when the dead training worker ends the stream.
        for stage in ("align and fuse", "train"):
            assert replaced(run, stage) == ["1 replaced"], stage


@only_full
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_driver(tmp_path, undisturbed, moment):
    with InterruptedRun(tmp_path, TRANSFORMERS).start() as run:
        wait_for_moment(run, "driver", moment)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        before = run.state
        assert run.start().wait() == 0, run.log
        assert 0 < before["step"] < run.state["step"]
        assert run.state["history"][: before["step"]] == before["history"]
        run.check_exactly_once()
        assert run.curve == undisturbed(TRANSFORMERS)


@only_full
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["training worker", "aligner", "reader"])
def test_a_process_that_is_replaced(tmp_path, undisturbed, victim, moment):
    with InterruptedRun(tmp_path, TRANSFORMERS).start() as run:
        wait_for_moment(run, victim, moment)
        kill_one(run, victim)
        assert run.wait() == 0, run.log
        run.check_exactly_once()
        assert run.curve == undisturbed(TRANSFORMERS)
        assert "1 replaced" in run.report


@only_full
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("backend", [TRANSFORMERS, VLLM])
def test_one_of_two_source_replicas(tmp_path, undisturbed, backend, moment):
    with InterruptedRun(tmp_path, backend).start("source_models.0.replicas=2") as run:
        wait_for_moment(run, "source replica", moment)
        kill_one(run, "source replica")
        assert run.wait() == 0, run.log
        run.check_exactly_once()
        assert run.curve == undisturbed(backend), "one replica, undisturbed, has the same losses"
        assert "1 replaced" in run.report


@only_full
def test_the_training_controller(tmp_path, undisturbed):
    with InterruptedRun(tmp_path, TRANSFORMERS).start() as run:
        wait_for_moment(run, "controller", 0)
        os.kill(run.wait_for(lambda: run.processes("TrainController"))[0].pid, signal.SIGKILL)
        assert run.wait() == 1, run.log
        assert "training.max_restarts is 0" in run.log
        assert run.start().wait() == 0, run.log
        run.check_exactly_once()
        assert run.curve == undisturbed(TRANSFORMERS)


@only_full
@pytest.mark.parametrize("workers", [(2, 1), (1, 2)])
def test_ctrl_c_and_another_number_of_workers(tmp_path, undisturbed, workers):
    first, then = workers
    with InterruptedRun(tmp_path, TRANSFORMERS).start(f"training.num_workers={first}") as run:
        wait_for_moment(run, "Ctrl-C", first)
        interrupt(run)
        assert run.start(f"training.num_workers={then}").wait() == 0, run.log
        run.check_exactly_once()
        for seen, expected in zip(run.curve, undisturbed(TRANSFORMERS), strict=True):
            assert seen == pytest.approx(expected, rel=1e-4)


@only_full
def test_a_worker_that_dies_once_too_often_stops_the_run(tmp_path):
    no_sources = ("source_models=[]", "objective.lm_loss_weight=1.0")
    with InterruptedRun(tmp_path, *no_sources, "training.max_restarts=0").start() as run:
        run.wait_for_step(2)
        os.kill(run.processes("RayTrainWorker")[0].pid, signal.SIGKILL)
        assert run.wait() == 1, run.log
        assert "the run failed" in run.log

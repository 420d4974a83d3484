"""Run monitor: one process to which every stage reports its work, and which the driver asks for a snapshot.

The numbers are for people. Exact values (learned passages, losses, win rates) travel with the data instead.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from engine.errors import FusionError
from engine.history.result import TRAIN, Committed, LeftOut, Progress, SkippedRow, StageTotals, StepRecord
from engine.history.sampling import is_sampled
from engine.history.step_log import StepLog

#: Skipped rows and passages left out that a picture lists; it counts all of them.
MOST_ROWS = 100

#: Checkpoints that a picture lists, the latest: more than can be made between two pictures.
MOST_CHECKPOINTS = 20

#: The longest wait until the monitor has heard why a process ends.
MOST_SECONDS_TO_END = 10.0


class Deaths(NamedTuple):
    """The deaths of one replica since the last checkpoint, those with a lost node left out.

    Attributes:
        count: how often its process has died.
        out_of_memory: how often a process of its stage has ended for want of memory, since the run's start.
        reason: what the last process of its stage has said before it ended; empty if none has said anything.
    """

    count: int = 0
    out_of_memory: int = 0
    reason: str = ""


class RunMonitor:
    """Sums up the reports of all replicas of all stages. Reports carry totals, so a repeated one changes nothing."""

    def __init__(self) -> None:
        self._processes: dict[str, dict[tuple[str, str], StageTotals]] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._forgiven: dict[tuple[str, str], int] = {}
        self._nodes: dict[tuple[str, str], str] = {}
        self._lost_nodes: set[str] = set()
        self._reasons: dict[str, list[tuple[str, bool]]] = {}
        self._stream = self._began_at = self._first_began_at = 0
        self._training_starts = 0
        self._retired: tuple[str, ...] = ()
        self._earlier: set[tuple[str, str]] = set()
        self._steps = StepLog()
        self._skipped: dict[tuple[str, int], SkippedRow] = {}
        self._left_out: dict[tuple[str, str], LeftOut] = {}
        self._looks: dict[tuple[int, str], tuple[int, dict[str, Any]]] = {}  # each with its mark
        self._checkpoints: deque[Committed] = deque(maxlen=MOST_CHECKPOINTS)
        self._num_not_finite = 0

    def begin_stream(self, retired: tuple[str, ...] = (), checkpoint: StepRecord | None = None) -> None:
        """Note that a stream begins, with new replicas.

        It is the first, one after a restart of the training workers, or one without a source model that was
        ``retired``, which is no restart.

        Args:
            checkpoint: the last step of the checkpoint that the stream goes on from; later steps are void. Workers may
                have ended before they could report it. None: there is no checkpoint, and no step stands.
        """
        if retired == self._retired or not self._stream:
            self._training_starts += 1
        self._retired = retired
        self._earlier = {key for processes in self._processes.values() for key in processes}
        self._began_at = checkpoint.step if checkpoint else 0
        if not self._stream:
            self._first_began_at = self._began_at
        elif checkpoint and checkpoint.step > max(self._steps.last_step, self._first_began_at):
            self._steps.add(checkpoint)
        self._stream += 1
        self._steps.go_back(self._began_at)
        self._drop_looks(self._began_at)

    def report(self, replica: str, process: str, totals: StageTotals) -> None:
        """Take the totals of one process so far; they replace its earlier report.

        A replica that dies goes on as another process; the work of the dead process still counts.
        """
        self._processes.setdefault(totals.name, {})[replica, process] = totals

    def start(
        self,
        replica: str,
        process: str,
        stage: str,
        deaths: int = 0,
        node: str = "",
        lost_nodes: Collection[str] = (),
    ) -> Deaths:
        """Note that a replica's process has started, after ``deaths`` deaths of the same replica by Ray's count.

        Args:
            node: where it has started.
            lost_nodes: nodes that Ray reports dead. A process that was there has not died by its own fault.
        """
        self._processes.setdefault(stage, {}).setdefault((replica, process), StageTotals(stage))
        self._deaths[stage, replica] = deaths
        self._nodes[replica, process] = node
        self._lost_nodes.update(lost_nodes)
        reasons = self._reasons.get(stage, [])
        return Deaths(
            count=max(0, self._own_deaths(stage, replica) - self._forgiven.get((stage, replica), 0)),
            out_of_memory=sum(short_of_memory for _, short_of_memory in reasons),
            reason=reasons[-1][0] if reasons else "",
        )

    def end(self, stage: str, reason: str, out_of_memory: bool) -> None:
        """Note why a process of a stage is about to end."""
        self._reasons.setdefault(stage, []).append((reason, out_of_memory))

    def commit(self, step: int) -> None:
        """Note that the checkpoint of a step is complete: the run gets on, and deaths before it count no more."""
        self._checkpoints.append(Committed(step, time.time()))
        for stage, processes in self._processes.items():
            for replica in {replica for replica, _ in processes}:
                self._forgiven[stage, replica] = self._own_deaths(stage, replica)

    def step(self, record: StepRecord) -> None:
        """Add one optimizer step; a step that is taken again takes the place of the first and voids all after it."""
        if record.step <= self._steps.last_step:
            self._drop_looks(record.step)
        self._steps.add(record)

    def refuse_step(self) -> None:
        """Note that a step was not taken, since its loss or its gradient was not finite."""
        self._num_not_finite += 1

    def inspect(self, passages: Sequence[dict[str, Any]]) -> None:
        """Add passages of a step that a page shows token by token (``actors.training.looks``); drop those too many."""
        mark = self._steps.note()
        looks = self._looks | {(passage["step"], passage["passage"]): (mark, passage) for passage in passages}
        newest = max(look["sample"] for _, look in looks.values())
        self._looks = {key: found for key, found in looks.items() if is_sampled(found[1]["sample"], newest)}

    def skip(self, row: SkippedRow) -> None:
        """Add a file or row that was left out; it counts once, however often it is read."""
        self._skipped[row.path, row.row] = row

    def leave_out(self, source: str, passage_ids: Sequence[str], reason: str) -> None:
        """Add passages that a source has not scored; each counts once, however often it comes."""
        for passage_id in passage_ids:
            self._left_out[source, passage_id] = LeftOut(source, passage_id, reason)

    def snapshot(self, mark: int = 0, most_rows: int | None = MOST_ROWS) -> Progress:
        """Everything so far, but of the steps and looks only those that are new; the totals count all steps.

        Args:
            mark: of the snapshot before; 0: all steps are new.
            most_rows: skipped rows, and passages left out, that are listed, the first ones to come; None: all, sorted.
                A hundred thousand of them cost a second, and the driver looks every second.
        """
        stages = [self._sum(name) for name in self._processes]
        if self._steps.last_step or self._training_starts > 1:
            stages.append(self._train_totals())
        return Progress(
            stages=tuple(stages),
            steps=self._steps.since(mark),
            void_after=self._steps.void_after(mark) if mark else None,
            mark=self._steps.mark,
            stream=self._stream,
            began_at=self._began_at,
            looks=tuple(look for _, (since, look) in sorted(self._looks.items(), key=itemgetter(0)) if since > mark),
            skipped=_listed(self._skipped, most_rows),
            left_out=_listed(self._left_out, most_rows),
            num_skipped=len(self._skipped),
            num_left_out=len(self._left_out),
            checkpoints=tuple(self._checkpoints),
            num_not_finite=self._num_not_finite,
            retired=self._retired,
        )

    def _drop_looks(self, step: int) -> None:
        """Drop the looks at steps after ``step``, which are void."""
        self._looks = {key: found for key, found in self._looks.items() if key[0] <= step}

    def _train_totals(self) -> StageTotals:
        """Training as a stage. The first worker reports for all, so it counts as one replica."""
        sums = self._steps.sums
        return StageTotals(
            name=TRAIN,
            passages=sums.passages,
            tokens=sums.tokens,
            busy_seconds=sums.seconds - sums.wait_seconds,
            wait_seconds=sums.wait_seconds,
            replicas=1,
            starts=max(1, self._training_starts),
        )

    def _own_deaths(self, stage: str, replica: str) -> int:
        """How often a replica has died but for the nodes that were lost."""
        processes = [process for name, process in self._processes[stage] if name == replica]
        lost = sum(self._nodes.get((replica, process)) in self._lost_nodes for process in processes)
        return max(0, max(len(processes) - 1, self._deaths.get((stage, replica), 0)) - lost)

    def _sum(self, name: str) -> StageTotals:
        """The totals of a stage over all of its processes; its replicas are those of the present stream."""
        processes = self._processes[name]
        totals = processes.values()
        started = Counter(replica for replica, _ in processes)
        deaths = [max(count - 1, self._deaths.get((name, replica), 0)) for replica, count in started.items()]
        replicas = {replica for replica, process in processes if (replica, process) not in self._earlier}
        return StageTotals(
            name=name,
            passages=sum(total.passages for total in totals),
            tokens=sum(total.tokens for total in totals),
            busy_seconds=sum(total.busy_seconds for total in totals),
            wait_seconds=sum(total.wait_seconds for total in totals),
            replicas=len(replicas),
            starts=len(replicas) + sum(deaths),
        )


class Meter:
    """Reports one replica's totals to the run monitor, after every call of its stage.

    A meter is made where the stream is built and starts to count when it arrives at its replica. It reports after every
    call: Ray Data kills the replicas of a stage as soon as its last call has returned.

    Args:
        stage: name of the stage.
        monitor: handle of the run's ``RunMonitor`` actor.
        max_restarts: how often one replica may die and be replaced between two checkpoints.
        limit: the spec's name for this number.
    """

    def __init__(self, stage: str, monitor: Any, max_restarts: int = 0, limit: str = "training.max_restarts"):
        self._stage = stage
        self._monitor = monitor
        self._max_restarts = max_restarts
        self._limit = limit
        self._process = uuid.uuid4().hex
        self._last_end: float | None = None
        self._totals = StageTotals(stage)
        self._lock = threading.Lock()  # a replica with two batches in flight records from two threads

    def __reduce__(self) -> tuple:
        return Meter, (self._stage, self._monitor, self._max_restarts, self._limit)

    def start(self) -> Deaths:
        """Report that this process has started; returns how often its replica has died since the last checkpoint."""
        ray = sys.modules["ray"]
        replica, node = _actor_id(), ray.get_runtime_context().get_node_id()
        lost_nodes = [other["NodeID"] for other in ray.nodes() if not other["Alive"]]
        who = (replica or self._process, self._process, self._stage)
        return ray.get(self._monitor.start.remote(*who, _deaths(replica), node, lost_nodes))

    def start_or_refuse(self) -> None:
        """Report that this process has started, and refuse if its replica dies too often.

        Ray itself would replace it for ever.

        Raises:
            FusionError: the replica has died more often than ``max_restarts`` since the last checkpoint.
        """
        deaths = self.start()
        if deaths.count > self._max_restarts:
            raise FusionError(
                f"{self._stage}: a replica has died {deaths.count} times since the last checkpoint, {self._limit} is "
                f"{self._max_restarts}; {_explained(deaths)}"
            )

    def end_process(self, error: BaseException, reason: str, out_of_memory: bool) -> None:
        """Report why this process cannot go on, and end it; Ray starts another one, which does the same work again."""
        traceback.print_exception(error)
        ray = sys.modules["ray"]
        ray.wait([self._monitor.end.remote(self._stage, reason, out_of_memory)], timeout=MOST_SECONDS_TO_END)
        sys.stderr.flush()  # os._exit flushes nothing
        os._exit(1)

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Add one call that has just ended; the time since the call before, less ``busy_seconds``, was waiting.

        Where two calls overlap, the time that they share counts once.
        """
        with self._lock:
            now = time.perf_counter()
            since = busy_seconds if self._last_end is None else now - self._last_end
            self._last_end = now
            self._totals = replace(
                self._totals,
                passages=self._totals.passages + passages,
                tokens=self._totals.tokens + tokens,
                busy_seconds=self._totals.busy_seconds + min(busy_seconds, since),
                wait_seconds=self._totals.wait_seconds + max(0.0, since - busy_seconds),
            )
            self._monitor.report.remote(_actor_id() or self._process, self._process, self._totals)

    def skip(self, row: SkippedRow) -> None:
        """Report a file or row that was left out."""
        self._monitor.skip.remote(row)

    def leave_out(self, passage_ids: Sequence[str], reason: str) -> None:
        """Report passages that this stage's source does not score."""
        self._monitor.leave_out.remote(self._stage, passage_ids, reason)


class NoMeter:
    """Counts nothing, for use outside a run."""

    def start_or_refuse(self) -> None:
        """Count no process and never refuse."""

    def end_process(self, error: BaseException, reason: str, out_of_memory: bool) -> None:
        """Leave the process alive: the caller raises the error."""

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Drop the report."""

    def skip(self, row: SkippedRow) -> None:
        """Drop the report."""


def _listed(rows: dict[Any, Any], most: int | None) -> tuple:
    """The first rows, or all of them in order."""
    return tuple(rows[key] for key in sorted(rows)) if most is None else tuple(islice(rows.values(), most))


def _explained(deaths: Deaths) -> str:
    """What is known of the deaths, and where to look if that is nothing."""
    if not deaths.reason:
        return "look for what ends it in Ray's logs (out of memory, a broken GPU)"
    memory = f"; memory was short {deaths.out_of_memory} times" if deaths.out_of_memory else ""
    return f"the last reason: {deaths.reason}{memory}"


def _actor_id() -> str | None:
    """Ray's id of the actor that runs this code, the same for all processes of the actor; None outside of Ray."""
    ray = sys.modules.get("ray")  # every actor has imported it, and elsewhere it is not needed
    return ray.get_runtime_context().get_actor_id() if ray is not None and ray.is_initialized() else None


def _deaths(replica: str | None) -> int:
    """How often Ray has replaced this actor's process. Only Ray knows: a process may die before it can report."""
    if replica is None:
        return 0
    from ray._private import state  # the public was_current_actor_reconstructed says only whether, not how often

    return int(state.actors(replica)["NumRestarts"])

"""A run that hangs says so, with the state of each stage."""

from engine.history.result import Progress, StageTotals
from engine.reporting.stalls import StallAlarm


def test_a_run_without_progress_names_every_stage_and_its_state():
    said: list[str] = []
    alarm = StallAlarm(10.0, said.append)
    corpus = StageTotals("corpus", 80, replicas=1)
    scored = [StageTotals("llama-docs", passages, replicas=2) for passages in (40, 48)]
    waiting = StageTotals("gpt2-code", replicas=1)
    for minute, source in ((0, scored[0]), (9, scored[1]), (18, scored[1])):
        alarm.see(Progress(stages=(corpus, source, waiting)), 1e6 + 60.0 * minute)
    assert said == []
    for minute in (19, 20, 28):
        alarm.see(Progress(stages=(corpus, scored[1], waiting)), 1e6 + 60.0 * minute)
    assert len(said) == 1, "one line for each ten minutes"
    assert "no stage has made progress for 10 minutes: corpus has done 80 passages, the last 19 minutes ago" in said[0]
    assert "llama-docs has done 48 passages, the last 10 minutes ago" in said[0]
    assert "gpt2-code is loading (1 started, 19 minutes ago)" in said[0]
    alarm.see(Progress(stages=(corpus, scored[1], waiting)), 1e6 + 60.0 * 29)
    assert len(said) == 2


def test_a_run_none_of_whose_processes_start_is_named_too():
    said: list[str] = []
    alarm = StallAlarm(1.0, said.append)
    for now in (1000.0, 1061.0):
        alarm.see(Progress(), now)
    assert said == [
        "no stage has made progress for 1 minutes: the first process has not started. "
        "See Ray's dashboard or `ray status` for what waits for a place"
    ]
    alarm.see(Progress(stages=(StageTotals("corpus", replicas=1),)), 1100.0)
    alarm.see(Progress(stages=(StageTotals("corpus", replicas=1),)), 1160.0)
    assert len(said) == 2
    assert "the first process" not in said[1]

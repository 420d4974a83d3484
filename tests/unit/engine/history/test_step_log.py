"""The log of steps tells everyone who asks what is new and what has become void, whenever they ask."""

from hypothesis import given
from hypothesis import strategies as st

from engine.history.step_log import StepLog
from tests.support.step_records import step_record


def test_what_is_new_comes_once_and_what_is_void_is_said_once():
    log = StepLog()
    assert (log.mark, log.last_step, log.since(0), log.void_after(0)) == (0, 0, (), None)
    for step in (5, 6, 7):
        log.add(step_record(step))
    assert [record.step for record in log.since(0)] == [5, 6, 7]
    mark = log.mark
    assert not log.go_back(7)
    assert log.go_back(5)
    assert (log.last_step, log.since(mark), log.void_after(mark), log.void_after(log.mark)) == (5, (), 5, None)
    log.add(step_record(6))
    assert ([record.step for record in log.since(mark)], log.void_after(mark)) == ([6], 5)
    assert log.sums == (200, 8, 4.0, 1.0)


@given(events=st.lists(st.tuples(st.sampled_from(["add", "back", "first", "second"]), st.integers(1, 12)), max_size=80))
def test_two_who_ask_at_different_times_have_the_steps_that_stand(events):
    log, standing, followers = StepLog(), [], {"first": ([], 0), "second": ([], 0)}
    for event, step in [*events, ("first", 1), ("second", 1)]:
        if event in followers:
            steps, mark = followers[event]
            void_after = log.void_after(mark)
            kept = [record for record in steps if void_after is None or record.step <= void_after]
            followers[event] = ([*kept, *log.since(mark)], log.mark)
            assert followers[event][0] == standing
        elif event == "add":
            standing = [record for record in standing if record.step < step] + [step_record(step, tokens=len(events))]
            log.add(standing[-1])
        else:
            standing = [record for record in standing if record.step <= step]
            log.go_back(step)
        assert log.last_step == (standing[-1].step if standing else 0)
        assert log.sums.tokens == sum(record.tokens for record in standing)
        assert log.sums.seconds == sum(record.seconds for record in standing)

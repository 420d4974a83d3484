"""A stream whose first item is asked for before it is taken."""

import threading

import pytest

from actors.training.early_stream import begun

pytestmark = pytest.mark.timeout(30)


def test_the_first_item_is_asked_for_at_once_and_the_others_when_they_are_taken():
    asked, first_asked = [], threading.Event()

    def items():
        for item in range(3):
            asked.append(item)
            first_asked.set()
            yield item

    stream = begun(items())
    assert first_asked.wait(10)
    assert asked == [0]
    assert list(stream) == [0, 1, 2]


def test_a_stream_without_items_ends():
    assert list(begun(iter(()))) == []


def test_an_error_of_the_first_item_is_raised_where_it_is_taken():
    def items():
        raise ValueError("a stage refused")
        yield

    stream = begun(items())
    with pytest.raises(ValueError, match="a stage refused"):
        next(stream)

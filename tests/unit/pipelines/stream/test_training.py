"""The hand-over to Ray Train: how Ctrl-C ends it."""

import signal
import sys

import pytest

from pipelines.stream.training import _interruptible

pytestmark = pytest.mark.timeout(60)


def test_ctrl_c_is_an_interrupt_and_python_has_its_handler_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _interruptible():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

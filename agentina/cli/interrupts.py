"""Ctrl-C that ends a command, wherever the command is.

Python raises KeyboardInterrupt in whatever runs at that moment, and not everything passes it on: in a finalizer it
vanishes, and so it does in some C modules while they are imported. A command that follows a job would then follow on
and on. So each stage of a process has its own way:

=====================  ====================================================================================
stage                  an interrupt
=====================  ====================================================================================
modules are imported   ends the process as the kernel does: nothing is begun, so nothing is to be undone
a command runs         raises KeyboardInterrupt, and again every second until it has been :func:`heard`
=====================  ====================================================================================

A process that was started to ignore interrupts (`nohup`, or a shell's `&`) goes on ignoring them. What runs an event
loop takes the signals over for itself.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, NoReturn

#: Seconds between an interrupt and its repetition: enough to clean up in.
_AGAIN: Final = 1.0
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """For the stage of importing."""
    _handle(signal.SIGINT, signal.SIG_DFL)


def raise_until_heard(*more: signal.Signals) -> None:
    """For the stage in which a command runs; ``more`` signals are taken for interrupts as well.

    Uses SIGALRM and the timer of real time, setitimer(2).
    """
    signal.signal(signal.SIGALRM, _interrupt)
    for number in (signal.SIGINT, *more):
        _handle(number, _interrupt)


def heard() -> None:
    """The interrupt has reached who acts on it: it is not repeated."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Nothing interrupts what is done in here, such as cleaning up after an interrupt."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS}
    heard()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: signal.Signals, handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise KeyboardInterrupt

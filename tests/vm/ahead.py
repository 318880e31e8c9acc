"""What later tests would wait for, made beside the first ones: a package, a saved machine, images of other systems.

A process of its own fills the cache, a step at a time, and does nothing else. What it cannot make, the test that needs
it makes, or says why not.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.vm import host, images, lab

#: It makes room for the tests themselves (nice(2)).
_NICENESS = 5


def wanted_by(items: Iterable[pytest.Item]) -> list[str]:
    """Steps of :func:`main` that some tests are in need of, in the order in which they are."""
    fixtures, suites = set(), []
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures.update(item.fixturenames)
            if hasattr(item, "callspec") and "suite" in item.callspec.params:
                suites.append(str(item.callspec.params["suite"]))
    steps = {"next_package": "next", "new_machine": "machine"}
    return [*(step for fixture, step in steps.items() if fixture in fixtures), *suites]


@contextlib.contextmanager
def making(steps: list[str], log: Path) -> Iterator[None]:
    """Have these made; at the end of the block the step that is being made is finished."""
    if not steps:
        yield
        return
    process = host.start_process([sys.executable, "-m", "tests.vm.ahead", *steps], log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        host.PROCESSES.discard(process.pid)


def main(steps: list[str]) -> None:
    """Make each: ``next`` (the later package), ``machine`` (one with the package), or a suite's image."""
    left = collections.deque(steps)
    signal.signal(signal.SIGTERM, lambda *_: left.clear())
    os.nice(_NICENESS)
    while left:
        step = left.popleft()
        if step == "next":
            lab.build_packages(version=lab.NEXT)
        elif step == "machine":
            lab.with_package(images.base(), lab.build_packages())
        else:
            images.base(step)


if __name__ == "__main__":
    main(sys.argv[1:])

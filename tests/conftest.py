"""Guards for every test: a clean environment before it, no process and no asyncio task left after it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina.system import tasks

with contextlib.suppress(ImportError):  # a host that has only what the executors' contract needs
    import hypothesis

    # How long an example takes is the machine's matter.
    hypothesis.settings.register_profile(
        "agentina", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("agentina")


_MEASURED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """A shell's `&` or nohup had this process ignore signals, and what tests start would inherit that."""
    config.stash[_MEASURED] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash[_MEASURED]:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a figure, which is printed at the end of the run."""
    return request.config.stash[_MEASURED].append


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The person's own agentina, git and proxy settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith(("AGENTINA_", "GIT_")) or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process or a task of :mod:`agentina.system.tasks`."""
    before = children()
    yield
    left = {pid: name for pid, name in children().items() if pid not in before}
    assert not left, f"processes left behind: {left}"
    running = [task.get_name() for task in tasks._running if not task.done()]
    assert not running, f"tasks left behind: {running}"


def children() -> dict[int, str]:
    """Living children of this process, with their command lines; zombies count as well."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread, or the child, has ended meanwhile
            for pid in (thread / "children").read_text().split():
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    return found

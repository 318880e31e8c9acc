"""Processes of this host: watched by pidfd, found by their environment, and helpers such as git run to their end.

A process id may be used again by another process; a pidfd never is (pidfd_open(2)). Whatever is to be signalled is
opened first, checked, and then signalled through its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.system import tasks

#: Most of an environment that is looked at; the kernel's own limit for it is a quarter of the stack, 2 MiB.
_MAX_ENVIRONMENT: Final = 4 << 20
_PASSES: Final = 200
_PASS_SECONDS: Final = 0.02
_SHOWN: Final = 500
_STANDSTILL_SECONDS: Final = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """A helper command that has ended."""

    #: Exit code; negative for a signal.
    code: int
    #: Bounded; ``truncated`` says whether there was more.
    output: bytes
    #: The end of what it wrote to stderr.
    problem: str
    truncated: bool = False


def open_pidfd(pid: int) -> int | None:
    """A pidfd of process ``pid``; None when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OverflowError:
        return None
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL}:  # nobody, or no process id at all (a damaged file)
            return None
        raise


def signal_through(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to the process a pidfd stands for; nothing happens when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


class Watch:
    """Tells the event loop when a process has ended. Owns the pidfd it is given."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._loop.add_reader(pidfd, self._on_end)

    async def wait(self) -> None:
        """Return when the process has ended, or the watch was closed."""
        await self._ended.wait()

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` in the loop once the process has ended."""
        self._callbacks.append(callback)

    def send(self, number: signal.Signals) -> None:
        """Signal the process, if it still runs."""
        if self._pidfd >= 0:
            signal_through(self._pidfd, number)

    def close(self) -> None:
        """Stop watching; the process goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._ended.set()

    def _on_end(self) -> None:
        self.close()
        for callback in self._callbacks:
            callback()


def with_variable(name: str, value: str) -> Iterator[int]:
    """Ids of the processes of this user whose environment, as they were started, says ``name=value``."""
    wanted = os.fsencode(f"{name}={value}")
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and _environment_holds(int(entry.name), wanted):
            yield int(entry.name)


def kill_with_variable(name: str, value: str) -> int:
    """End every process of this user whose environment says ``name=value``; returns how many were killed.

    Blocks for some milliseconds, with a fork bomb for seconds at most. Each process is opened before it is looked at,
    so that a process id used anew in between cannot be hit.
    """
    wanted = os.fsencode(f"{name}={value}")
    killed: set[tuple[int, int]] = set()
    for _ in range(_PASSES):
        found = False
        for pid in list(with_variable(name, value)):
            pidfd = open_pidfd(pid)
            if pidfd is None:
                continue
            try:
                if _environment_holds(pid, wanted):
                    found = True
                    killed.add((pid, start_ticks(pid)))
                    signal_through(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
        if not found:
            break
        time.sleep(_PASS_SECONDS)  # what was killed needs a moment to be gone, and may have forked before
    return len(killed)


def start_ticks(pid: int) -> int:
    """When the process was started, in clock ticks since boot (field 22 of /proc/PID/stat); 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def is_stopped(pid: int) -> bool:
    """Whether the process was stopped by a signal (state ``T``, field 3 of /proc/PID/stat) and is not being traced."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


class Standstill:
    """Tells a process that was stopped, and is left so, from one that is stopped for a moment."""

    def __init__(self) -> None:
        self._since: float | None = None

    def lasts(self, pid: int) -> bool:
        """Look again: whether it was found stopped at every look of the last five seconds."""
        now = time.monotonic()
        if not is_stopped(pid):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= _STANDSTILL_SECONDS


def _environment_holds(pid: int, wanted: bytes) -> bool:
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            return wanted in file.read(_MAX_ENVIRONMENT).split(b"\0")
    except OSError:
        return False  # another user's, or gone


def spawn_detached(argv: Sequence[str], *, pass_descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a long-lived helper of ours in a session of its own, with an empty environment.

    Raises:
        AgentinaError: ``TASK_START_FAILED``.

    """
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"LD_BIND_NOW": "1"},
            pass_fds=pass_descriptors,
            start_new_session=True,
        )
    except OSError as error:
        raise errors.TASK_START_FAILED(problem=f"{Path(argv[0]).name} cannot be run: {error.strerror}") from error


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    timeout_seconds: float,
    output_limit: int = 1 << 20,
    output_file: int | None = None,
    pass_descriptors: Sequence[int] = (),
) -> Completed:
    """Run a helper command to its end, without input, in a process group of its own.

    At ``timeout_seconds``, or when it writes more than ``output_limit`` bytes, the whole group is killed.

    Args:
        argv: Program and arguments.
        environment: Its whole environment.
        directory: Its working directory.
        timeout_seconds: Time after which it is killed.
        output_limit: Most bytes of output kept, in memory or in ``output_file``.
        output_file: Descriptor to write the output to, instead of keeping it in memory.
        pass_descriptors: Descriptors it inherits, such as a lock to hold for as long as it lives.

    Raises:
        FileNotFoundError: There is no such program or directory.
        TimeoutError: It took longer than ``timeout_seconds``.

    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd=directory,
        start_new_session=True,
        pass_fds=pass_descriptors,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    sink = _Sink(output_limit, output_file, overflow=lambda: _kill_group(process.pid))
    problem = _Tail(_SHOWN)
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.gather(_drain(process.stdout, sink), _drain(process.stderr, problem))
            code = await process.wait()
    finally:
        if process.returncode is None:
            _kill_group(process.pid)
            await tasks.finish(process.wait())
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - else pipes a grandchild holds leak
    return Completed(code=code, output=bytes(sink.kept), problem=problem.text(), truncated=sink.truncated)


class _Sink:
    """Takes output up to a limit."""

    def __init__(self, limit: int, descriptor: int | None, *, overflow: Callable[[], None]) -> None:
        self.kept = bytearray()
        self.truncated = False
        self._left = limit
        self._descriptor = descriptor
        self._overflow = overflow

    def add(self, piece: bytes) -> None:
        """Keep what fits; end the writer when it does not."""
        if len(piece) > self._left:
            self.truncated = True
            self._overflow()
        piece = piece[: self._left]
        self._left -= len(piece)
        if self._descriptor is None:
            self.kept += piece
            return
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]


class _Tail:
    """Keeps the end of what is written."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = b""

    def add(self, piece: bytes) -> None:
        """Keep the last bytes."""
        self._kept = (self._kept + piece)[-self._limit :]

    def text(self) -> str:
        """One line for a person."""
        return " ".join(self._kept.decode("utf-8", "replace").split())


async def _drain(stream: asyncio.StreamReader, target: _Sink | _Tail) -> None:
    while piece := await stream.read(1 << 16):
        target.add(piece)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)

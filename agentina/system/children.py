"""Short commands run to their end, and long-running children that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

_PR_SET_PDEATHSIG: Final = 1
_TIMEOUT: Final = 30.0


def run(command: Sequence[str], *, directory: Path | None = None, timeout_seconds: float = _TIMEOUT) -> tuple[int, str]:
    """Run ``command`` to its end: exit code and what it wrote; 127: no such program, 124: out of time."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{command[0]}: not found"
    except OSError as error:
        return 126, f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]}: no end after {timeout_seconds:g} s"
    return done.returncode, done.stdout.decode(errors="replace")


class Child:
    """A process of ours that is ended with us, even by kill -9 (PR_SET_PDEATHSIG, prctl(2))."""

    def __init__(
        self, command: Sequence[str], *, log: IO[bytes], environment: Mapping[str, str], detached: bool = False
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # A terminal's Ctrl-C goes to us alone; we end our children in order.
            start_new_session=True,
            preexec_fn=None if detached else _ender(),  # noqa: PLW1509 - we have no threads
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def has_ended(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    def stop(self, *, grace_seconds: float) -> None:
        """SIGTERM, the grace, SIGKILL. Returns when it is gone."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


def _ender() -> Callable[[], None]:
    """What the child runs before its program: ask the kernel for SIGTERM when the parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return ask

"""The daemon's log: a sentence for people, and fields for machines, on standard error and where `agentina logs` looks.

The journal keeps what a service writes to standard error; without one the daemon also writes a file of bounded size.

Each line is ``TIME LEVEL sentence key=value …``; with a journal the time is left out, because the journal has its own,
and the level becomes the prefix of sd-daemon(3). Fields come from ``extra``: instance, action, job, task, code.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Final

from agentina.system import clock

#: Bytes of the file before a new one begins; two are kept.
_MAX_FILE: Final = 8 << 20
_FIELDS: Final = ("action", "job", "task", "code")
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Formatter(logging.Formatter):
    """Formats records as described above. A line break in a message would fake another line: it is escaped."""

    def __init__(self, *, instance: str, journal: bool) -> None:
        super().__init__()
        self._instance = instance
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One record, on one line but for a traceback, which is indented."""
        message = record.getMessage().replace("\n", "\\n").replace("\r", "\\r")
        fields = [f"instance={self._instance}"]
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value:
                fields.append(f"{name}={_quoted(str(value))}")
        line = f"{message} {' '.join(fields)}"
        if record.exc_info:
            line += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        if self._journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}"
        return f"{clock.show_time(int(record.created * 1000))} {record.levelname.lower()} {line}"


class BoundedFile(logging.Handler):
    """Appends to a file; at ``limit`` bytes it becomes ``<name>.1``, replacing the one before, and a new one begins.

    A full disk loses lines, never the daemon's work: what cannot be written is dropped. (The handlers of the standard
    library print a traceback for each such line, and load sockets and pickles that an idle daemon has no use for.)
    """

    def __init__(self, path: Path, *, limit: int = _MAX_FILE) -> None:
        """Open the file.

        Raises:
            OSError: It cannot be written.

        """
        super().__init__()
        self._path = path
        self._limit = limit
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        with contextlib.suppress(OSError):
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            if self._size and self._size + len(line) > self._limit:
                self._rotate()
            self._size += os.write(self._descriptor, line)

    def close(self) -> None:
        """Close the file."""
        with self.lock or contextlib.nullcontext():
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
        super().close()

    def _rotate(self) -> None:
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        descriptor, self._descriptor = self._descriptor, self._open()
        os.close(descriptor)
        self._size = 0

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)


def set_up(*, instance: str, level: str, file: Path) -> None:
    """Send everything of this process to standard error and, without a journal, to ``file``."""
    journal = "JOURNAL_STREAM" in os.environ
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    trouble: OSError | None = None
    if not journal:
        try:
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not _is_stderr(file):
                handlers.append(BoundedFile(file))
        except OSError as error:
            trouble = error
    for handler in handlers:
        handler.setFormatter(Formatter(instance=instance, journal=journal))
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    # asyncio tells of slow callbacks and sockets only where somebody looks for them.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if trouble is not None:
        root.warning("`agentina logs` will have nothing: %s cannot be written: %s", file, trouble.strerror)


def _is_stderr(path: Path) -> bool:
    """Whether standard error was sent to this very file: each line would be in it twice."""
    try:
        return os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat())
    except (OSError, ValueError):
        return False


def _quoted(value: str) -> str:
    return (
        value
        if value.isascii() and value.isprintable() and " " not in value and '"' not in value
        else json.dumps(value)
    )

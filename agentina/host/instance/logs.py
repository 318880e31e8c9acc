"""The daemon's log: a sentence for people, and fields for machines, where `agentina logs` looks for it.

When standard error is the journal, each record becomes an entry of it: the sentence is MESSAGE, the rest are fields of
their own (docs/reference/logs.md), for ``journalctl AGENTINA_TASK=…``. Elsewhere the daemon writes to standard error
and to a file of bounded size, each line ``TIME LEVEL sentence key=value …``; on a standard error that is the journal's
but from where its socket cannot be reached, lines carry the prefix of sd-daemon(3) instead of time and level.
Fields come from ``extra``: action, job, task, code.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Final

from agentina.system import clock, journal

#: Bytes of the file before a new one begins; two are kept.
_MAX_FILE: Final = 8 << 20
_FIELDS: Final = ("action", "job", "task", "code")
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Formatter(logging.Formatter):
    """Formats records as described above. A line break in a message would fake another line: it is escaped."""

    def __init__(self, *, instance: str, prefixed: bool = False) -> None:
        """``prefixed``: with the priority of sd-daemon(3) in front, for a standard error that is the journal's."""
        super().__init__()
        self._instance = instance
        self._prefixed = prefixed
        #: The last record and its line: two handlers ask for it one after the other.
        self._last: tuple[logging.LogRecord, str] | None = None

    def format(self, record: logging.LogRecord) -> str:
        """One record, on one line but for a traceback, which is indented."""
        last = self._last
        if last is None or last[0] is not record:
            last = self._last = (record, self._line(record))
        return last[1]

    def _line(self, record: logging.LogRecord) -> str:
        fields = [f"instance={self._instance}"]
        fields.extend(f"{name}={_quoted(value)}" for name, value in _particulars(record))
        line = f"{_one_line(record)} {' '.join(fields)}"
        if record.exc_info:
            line += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        if self._prefixed:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}"
        return f"{clock.show_time(int(record.created * 1000))} {record.levelname.lower()} {line}"


class Journal(logging.Handler):
    """Writes entries to the journal; never waits for it, and never fails."""

    def __init__(self, sender: journal.Sender, *, instance: str) -> None:
        super().__init__()
        self._sender = sender
        self._common = (("SYSLOG_IDENTIFIER", "agentina"), ("AGENTINA_INSTANCE", instance))
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._sender.send(self._fields(record), gap=self._common)
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is a fault of ours, and no reason to stop
            self.handleError(record)

    def close(self) -> None:
        """Close the sender."""
        self._sender.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, str]]:
        message = _one_line(record)
        if record.exc_info and self.formatter is not None:
            message += "\n" + self.formatter.formatException(record.exc_info)
        fields = [
            ("MESSAGE", message),
            ("PRIORITY", str(_PRIORITIES.get(record.levelno, 6))),
            *self._common,
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", str(record.lineno)),
            ("CODE_FUNC", record.funcName or ""),
        ]
        particulars = dict(_particulars(record))
        if "task" in particulars:
            # A task's id begins with its job's.
            particulars.setdefault("job", particulars["task"].rpartition(".")[0])
        fields.extend((f"AGENTINA_{name.upper()}", value) for name, value in particulars.items() if value)
        return fields


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
    """Send everything of this process to the journal, or to standard error and ``file`` where there is none."""
    trouble: OSError | None = None
    if journal.is_stderr():
        handlers = _to_journal(instance)
    else:
        handlers, trouble = _to_file(instance, file)
    # Facts about each record that no format shows (the logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = handlers
    set_level(level)
    # asyncio tells of slow callbacks and sockets only where somebody looks for them.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if trouble is not None:
        root.warning("`agentina logs` will have nothing: %s cannot be written: %s", file, trouble.strerror)


def set_level(level: str) -> None:
    """Log what is at least of this level."""
    logging.getLogger().setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))


def _to_journal(instance: str) -> list[logging.Handler]:
    sender = journal.Sender()
    if sender.is_heard():
        return [Journal(sender, instance=instance)]
    sender.close()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(Formatter(instance=instance, prefixed=True))
    return [stream]


def _to_file(instance: str, file: Path) -> tuple[list[logging.Handler], OSError | None]:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    trouble: OSError | None = None
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not _is_stderr(file):
            handlers.append(BoundedFile(file))
    except OSError as error:
        trouble = error
    formatter = Formatter(instance=instance)
    for handler in handlers:
        handler.setFormatter(formatter)
    return handlers, trouble


def _one_line(record: logging.LogRecord) -> str:
    """The sentence. A line break in it would fake another line: it is escaped."""
    return record.getMessage().replace("\n", "\\n").replace("\r", "\\r")


def _particulars(record: logging.LogRecord) -> list[tuple[str, str]]:
    """The fields that ``extra`` gave."""
    return [(name, str(value)) for name in _FIELDS if (value := getattr(record, name, None))]


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

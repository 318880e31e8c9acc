"""The daemon's log: a sentence for people, and fields for machines, on standard error.

Each line is ``TIME LEVEL sentence key=value …``; with a journal the time is left out, because the journal has its own,
and the level becomes the prefix of sd-daemon(3). Fields come from ``extra``: instance, action, job, task, code.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Final

from agentina.system import clock

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


def set_up(*, instance: str, level: str) -> None:
    """Send everything of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(instance=instance, journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    # asyncio tells of slow callbacks and sockets only where somebody looks for them.
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _quoted(value: str) -> str:
    return (
        value
        if value.isascii() and value.isprintable() and " " not in value and '"' not in value
        else json.dumps(value)
    )

from __future__ import annotations

import logging
import sys

from agentina.host import logs


def line(message: str, *arguments: object, journal: bool = False, **extra: object) -> str:
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, message, arguments, None)
    record.__dict__.update(extra)
    return logs.Formatter(instance="default", journal=journal).format(record)


def test_sentence_comes_first_and_fields_after() -> None:
    text = line("task %s ended", "t.1", task="t.1", action="task-finished", code=None)
    assert text.endswith("warning task t.1 ended instance=default action=task-finished task=t.1")


def test_journal_gets_a_priority_and_no_time() -> None:
    assert line("x", journal=True) == "<4>x instance=default"


def test_line_breaks_cannot_fake_another_line() -> None:
    text = line("job %s", "evil\n2026-01-01T00:00:00Z error all is lost", job='a "b')
    assert "\n" not in text
    assert r'job="a \"b"' in text


def test_traceback_is_indented() -> None:
    try:
        raise ValueError("boom")  # noqa: TRY301
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    text = logs.Formatter(instance="i", journal=False).format(record)
    assert all(part.startswith("  ") for part in text.split("\n")[1:])
    assert "ValueError: boom" in text

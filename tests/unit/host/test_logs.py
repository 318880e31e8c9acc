from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.host.instance import logs
from agentina.system import journal
from tests.fakes import journald


def line(message: str, *arguments: object, prefixed: bool = False, **extra: object) -> str:
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, message, arguments, None)
    record.__dict__.update(extra)
    return logs.Formatter(instance="default", prefixed=prefixed).format(record)


def test_sentence_comes_first_and_fields_after() -> None:
    text = line("task %s ended", "t.1", task="t.1", action="task-finished", code=None)
    assert text.endswith("warning task t.1 ended instance=default action=task-finished task=t.1")


def test_each_record_has_its_own_line_however_often_it_is_asked_for() -> None:
    formatter = logs.Formatter(instance="default")
    first, second = (logging.LogRecord("x", logging.INFO, __file__, 1, text, (), None) for text in ("one", "two"))
    lines = [formatter.format(record) for record in (first, first, second, second, first)]
    assert ["one" in text for text in lines] == [True, True, False, False, True]


def test_stream_of_the_journal_gets_a_priority_and_no_time() -> None:
    assert line("x", prefixed=True) == "<4>x instance=default"


def test_line_breaks_cannot_fake_another_line() -> None:
    text = line("job %s", "evil\n2026-01-01T00:00:00Z error all is lost", job='a "b')
    assert "\n" not in text
    assert r'job="a \"b"' in text


def test_traceback_is_indented() -> None:
    try:
        raise ValueError("boom")  # noqa: TRY301
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    text = logs.Formatter(instance="i").format(record)
    assert all(part.startswith("  ") for part in text.split("\n")[1:])
    assert "ValueError: boom" in text


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def test_file_is_bounded_and_one_older_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    handler = logs.BoundedFile(path, limit=1000)
    for number in range(100):
        handler.emit(logging.LogRecord("x", logging.INFO, __file__, 1, "line %03d %s", (number, "." * 40), None))
    handler.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    older, newer = path.with_name("a.log.1").read_text(), path.read_text()
    assert len(older) <= 1000
    assert len(newer) <= 1000
    lines = (older + newer).splitlines()
    assert lines[-1].startswith("line 099")
    assert [int(one.split()[1]) for one in lines] == list(range(100 - len(lines), 100))


def test_what_the_disk_does_not_take_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = logs.BoundedFile(tmp_path / "a.log")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # Python ignores SIGXFSZ
    try:
        handler.emit(logging.LogRecord("x", logging.INFO, __file__, 1, "lost", (), None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    handler.emit(logging.LogRecord("x", logging.INFO, __file__, 1, "kept", (), None))
    handler.close()
    assert (tmp_path / "a.log").read_text() == "kept\n"
    assert capsys.readouterr().err == ""


def test_without_a_journal_a_file_has_it_too(
    tmp_path: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    path = tmp_path / "log/a.log"
    logs.set_up(instance="a", level="info", file=path)
    root_logger.info("hello")
    assert "hello instance=a" in path.read_text()
    assert "hello instance=a" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[journald.Journald]:
    """A journal that standard error goes to, as far as the variable tells."""
    monkeypatch.setattr(journal, "is_stderr", lambda: True)
    made = journald.Journald(tmp_path / "socket")
    monkeypatch.setattr(journal.Sender.__init__, "__defaults__", (made.path,))
    yield made
    if made.path.exists():
        made.close()


def test_journal_gets_a_sentence_and_fields(
    tmp_path: Path, root_logger: logging.Logger, server: journald.Journald, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(instance="coder-2", level="info", file=tmp_path / "log/a.log")
    logging.getLogger("x").error(
        "task %s ended\nPRIORITY=7", "j.2", extra={"action": "task-finished", "task": "j.2", "code": "DISK_FULL"}
    )
    logging.getLogger("x").info("session %d is open", 3, extra={"code": None})
    first, second = server.take()
    assert first.pop("CODE_FILE") == __file__
    assert int(first.pop("CODE_LINE")) > 0
    assert first == {
        "MESSAGE": r"task j.2 ended\nPRIORITY=7", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "agentina",
        "AGENTINA_INSTANCE": "coder-2", "AGENTINA_TASK": "j.2", "AGENTINA_JOB": "j", "AGENTINA_CODE": "DISK_FULL",
        "AGENTINA_ACTION": "task-finished", "CODE_FUNC": "test_journal_gets_a_sentence_and_fields",
    }  # fmt: skip
    assert (second["MESSAGE"], second["PRIORITY"]) == ("session 3 is open", "6")
    assert not {name for name in second if name.startswith("AGENTINA_")} - {"AGENTINA_INSTANCE"}
    assert not (tmp_path / "log").exists(), "the journal is enough"
    assert capsys.readouterr().err == ""


def test_journal_gets_tracebacks_whole(tmp_path: Path, root_logger: logging.Logger, server: journald.Journald) -> None:
    logs.set_up(instance="a", level="info", file=tmp_path / "a.log")
    try:
        raise ValueError("boom " + "x" * 300_000)  # noqa: TRY301
    except ValueError:
        root_logger.exception("failed")
    (entry,) = server.take()
    assert entry["MESSAGE"].startswith("failed\nTraceback (most recent call last):\n")
    assert entry["MESSAGE"].endswith("x" * 300_000)
    assert server.sealed == 1


def test_out_of_the_journals_reach_standard_error_has_to_do(
    tmp_path: Path, root_logger: logging.Logger, server: journald.Journald, capsys: pytest.CaptureFixture[str]
) -> None:
    server.close()
    logs.set_up(instance="a", level="info", file=tmp_path / "log/a.log")
    root_logger.info("journal")
    assert not (tmp_path / "log").exists()
    assert "<6>journal instance=a" in capsys.readouterr().err


def test_record_that_cannot_be_formatted_does_not_stop_the_daemon(
    tmp_path: Path, root_logger: logging.Logger, server: journald.Journald, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(instance="a", level="info", file=tmp_path / "a.log")
    root_logger.info("%d", "no number")
    root_logger.info("after")
    assert [entry["MESSAGE"] for entry in server.take()] == ["after"]
    assert "no number" in capsys.readouterr().err


def test_standard_error_sent_to_the_file_is_enough(
    tmp_path: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.log"
    with path.open("a") as redirected:
        monkeypatch.setattr(sys, "stderr", redirected)
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        logs.set_up(instance="a", level="info", file=path)
        root_logger.info("once")
        redirected.flush()
    assert path.read_text().count("once") == 1


def test_unwritable_file_is_said_and_the_daemon_goes_on(
    tmp_path: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    (tmp_path / "log").write_text("not a directory")
    logs.set_up(instance="a", level="info", file=tmp_path / "log/a.log")
    assert "cannot be written" in capsys.readouterr().err

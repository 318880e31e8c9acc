from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentina import errors
from agentina.cli import logs, main
from agentina.system import journal, paths, services

OLD = b"2026-11-21T09:00:00Z info one instance=default action=x task=j.1\n"
NEW = b"2026-11-21T10:00:00Z error two instance=default task=j.10\n  Traceback of j.10\n"
LAST = b"2026-11-21T11:00:00Z info three instance=default\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = paths.Layout(tmp_path).instance("default").log
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".1").write_bytes(OLD)
    path.write_bytes(NEW + LAST)
    return path


def shown(tmp_path: Path, *arguments: str) -> bytes:
    command = [sys.executable, "-m", "agentina", "logs", "--root", str(tmp_path), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "TZ": "UTC"}).stdout


def test_last_lines_reach_over_a_rotation(log: Path, tmp_path: Path) -> None:
    assert shown(tmp_path) == OLD + NEW + LAST
    assert shown(tmp_path, "-n", "3") == NEW + LAST
    assert shown(tmp_path, "-n", "0") == b""


def test_task_is_matched_whole_and_with_its_traceback(log: Path, tmp_path: Path) -> None:
    assert shown(tmp_path, "--task", "j.1") == OLD
    assert shown(tmp_path, "--task", "j.10") == NEW
    assert shown(tmp_path, "--task", "j.") == b""


def test_a_log_without_such_a_line_says_so(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["logs", "--root", str(tmp_path), "--task", "j.2"]) == 0
    assert f"{log} has no such line." in capsys.readouterr().err


@pytest.mark.parametrize("since", ["2026-11-21T09:30", "2026-11-21 09:30:00+00:00", "2026-11-21T11:30+02:00"])
def test_since_a_time(log: Path, tmp_path: Path, since: str) -> None:
    assert shown(tmp_path, "--since", since) == NEW + LAST


def test_since_some_time_ago(log: Path, tmp_path: Path) -> None:
    recent = time.strftime("%Y-%m-%dT%H:%M:%SZ info now\n", time.gmtime()).encode()
    log.write_bytes(b"2020-01-01T00:00:00Z info old\n" + recent)
    assert shown(tmp_path, "--since", "1h") == recent


def test_time_that_is_none_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["logs", "--root", str(tmp_path), "--since", "yesterday"]) == errors.Exit.USAGE
    assert "2026-11-21T10:00" in capsys.readouterr().err


def test_following_goes_on_after_a_rotation(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):  # noqa: N818
        pass

    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", type("Stdout", (), {"buffer": output}))
    looked = iter(range(3))

    def look(_: float) -> None:
        step = next(looked, None)
        if step is None:
            raise Ended
        if step == 1:
            with log.open("ab") as file:
                file.write(b"2026-11-21T12:00:00Z info before task=j.2\n")
            log.replace(log.with_name(log.name + ".1"))
            log.write_bytes(b"2026-11-21T12:00:01Z info after task=j.2\n2026-11-21T12:00:01Z info other task=j.3\n")

    monkeypatch.setattr(time, "sleep", look)
    with pytest.raises(Ended):
        logs._print_file(log, logs.Wanted(task="j.2", since=None), lines=0, follow=True)
    assert [line.split()[2] for line in output.getvalue().splitlines()] == [b"before", b"after"]


def test_command_for_the_journal() -> None:
    plain = logs.journal_command("a", lines=100, task=None, since=None, follow=False)
    units = ["--unit", "agentina@a.service", "--unit", "agentina-trial@a.service"]
    assert plain == ["journalctl", "--no-pager", *units, "--lines", "100"]
    full = logs.journal_command("a", lines=None, task="j.1", since=1_700_000_000.5, follow=True)
    assert full[6:] == ["--lines", "all", "--since", "@1700000000.500000", "--follow", "AGENTINA_TASK=j.1"]


@pytest.mark.parametrize(
    ("runs", "active", "has_file", "in_journal"),
    [
        ("systemd", "active", "", True),
        ("systemd", "active", "file", True),
        ("systemd", "", "", True),
        ("systemd", "", "file", False),
        ("", "", "", False),
        ("", "", "file", False),
    ],
)
def test_where_the_log_is(
    monkeypatch: pytest.MonkeyPatch, *, runs: str, active: str, has_file: str, in_journal: bool
) -> None:
    monkeypatch.setattr(services, "runs_here", lambda: bool(runs))
    monkeypatch.setattr(services, "is_active", lambda _: bool(active))
    monkeypatch.setattr(Path, "exists", lambda _: bool(has_file))
    assert logs._is_in_journal(paths.Layout().instance("default")) is in_journal


def test_below_a_root_the_journal_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "runs_here", lambda: True)
    assert not logs._is_in_journal(paths.Layout(tmp_path).instance("default"))


def test_missing_log_and_missing_instance_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["logs", "--root", str(tmp_path)]
    assert main.run(arguments) == errors.Exit.NOT_FOUND
    assert "code: INSTANCE_UNKNOWN" in capsys.readouterr().err
    config = paths.Layout(tmp_path).instance("default").config
    config.parent.mkdir(parents=True)
    config.write_text("control_plane: https://x\n")
    assert main.run(arguments) == errors.Exit.NOT_FOUND
    assert "code: NOT_FOUND" in capsys.readouterr().err


def test_journal_is_asked_only_for_what_is_there_and_by_who_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    monkeypatch.setattr(journal, "is_readable", lambda: False)
    with pytest.raises(errors.AgentinaError) as caught:
        logs._check_journal(instance)
    assert caught.value.entry is errors.INSTANCE_UNKNOWN
    instance.config.parent.mkdir(parents=True)
    instance.config.touch()
    with pytest.raises(errors.AgentinaError) as caught:
        logs._check_journal(instance)
    assert caught.value.entry is errors.LOG_FORBIDDEN
    assert "agentina@default.service" in caught.value.message
    monkeypatch.setattr(journal, "is_readable", lambda: True)
    logs._check_journal(instance)

from __future__ import annotations

import json
import sys

import pytest

from agentina import errors
from agentina.cli import output

HOSTILE = "evil\x1b[2Jname\r\n\u202ex"


def test_hostile_text_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "STATE"), [(HOSTILE, "failed"), ("plain", "ok")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_columns_are_aligned_without_trailing_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "LONGER"), [("wide cell", 1), ("x", "")])
    assert capsys.readouterr().out == "A          LONGER\nwide cell  1\nx\n"


def test_empty_table_shows_its_headers(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "B"), [])
    assert capsys.readouterr().out == "A  B\n"


def test_cells_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A",), [("x" * 10_000,)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


@pytest.mark.parametrize(("terminal", "prose", "width"), [(True, True, 40), (True, False, 96), (False, True, 96)])
def test_prose_is_cut_for_terminals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool, prose: bool, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    output.table(("ID", "WHY"), [("abcd", "x" * 90)], ends_in_prose=prose)
    assert len(capsys.readouterr().out.splitlines()[1]) == width


@pytest.mark.parametrize(
    ("environment", "terminal", "colored"),
    [({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False)],
)
def test_color_is_for_terminals_of_those_who_want_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool, colored: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    class Stream:
        def isatty(self) -> bool:
            return terminal

    assert output.colored(Stream()) is colored
    assert ("\x1b" in output.paint("failed", to=Stream())) is colored


def test_pairs_leave_out_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    output.pairs([("role", None), ("agent", "a"), ("organization", "b"), ("x", "")], indent=2)
    assert capsys.readouterr().out == "  agent         a\n  organization  b\n"


def test_failure_goes_to_people_and_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output.failure(errors.JOB_UNKNOWN(job=HOSTILE), as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["context"]["job"] == HOSTILE
    assert len(said.err.splitlines()) == 3
    assert "\x1b" not in said.err


def test_ago() -> None:
    assert output.ago(None, 5) == "never"
    assert output.ago(1_000, 61_000) == "1m ago"
    assert output.ago(9_000, 1_000) == "0 ms ago"

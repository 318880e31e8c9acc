from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.system import journal
from tests.fakes import journald


@pytest.fixture
def server(tmp_path: Path) -> Iterator[journald.Journald]:
    made = journald.Journald(tmp_path / "socket")
    yield made
    if made.path.exists():
        made.close()


@pytest.fixture
def sender(server: journald.Journald) -> Iterator[journal.Sender]:
    made = journal.Sender(server.path)
    yield made
    made.close()


TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\n=\0"))


@given(st.lists(st.tuples(st.from_regex(r"[A-Z][A-Z0-9_]{0,9}", fullmatch=True), TEXT), unique_by=lambda f: f[0]))
def test_any_value_comes_back_and_adds_no_field(fields: list[tuple[str, str]]) -> None:
    assert journald.parse(journal.encode(fields)) == dict(fields)


def test_half_a_character_is_escaped() -> None:
    assert journald.parse(journal.encode([("MESSAGE", "a\ud800b")])) == {"MESSAGE": r"a\ud800b"}


def test_small_entries_are_datagrams_and_large_ones_sealed_files(
    server: journald.Journald, sender: journal.Sender
) -> None:
    large = "x" * (8 << 20)
    assert sender.send([("MESSAGE", "small")])
    assert server.take() == [{"MESSAGE": "small"}]
    assert server.sealed == 0
    assert sender.send([("MESSAGE", large), ("PRIORITY", "3")])
    assert server.take() == [{"MESSAGE": large, "PRIORITY": "3"}]
    assert server.sealed == 1
    assert not [link for link in Path("/proc/self/fd").iterdir() if "journal-entry" in _target(link)]


def test_journal_that_is_stuck_is_not_waited_for_and_the_gap_is_told(
    server: journald.Journald, sender: journal.Sender
) -> None:
    sent = 0
    while sender.send([("MESSAGE", f"{sent}")]):
        sent += 1
    for _ in range(9):
        assert not sender.send([("MESSAGE", "dropped")])
    assert [entry["MESSAGE"] for entry in server.take()] == [str(number) for number in range(sent)]
    assert sender.send([("MESSAGE", "after")], gap=[("AGENTINA_INSTANCE", "a")])
    gap, after = server.take()
    assert gap["MESSAGE"].startswith("10 earlier log messages are missing")
    assert (gap["PRIORITY"], gap["AGENTINA_INSTANCE"]) == ("4", "a")
    assert after == {"MESSAGE": "after"}


def test_restarted_journal_is_found_again(server: journald.Journald, sender: journal.Sender) -> None:
    assert sender.is_heard()
    server.close()
    assert not sender.is_heard()
    assert not sender.send([("MESSAGE", "lost")])
    again = journald.Journald(server.path)
    assert sender.send([("MESSAGE", "found")])
    assert [entry["MESSAGE"][:9] for entry in again.take()] == ["1 earlier", "found"]
    again.close()


@pytest.mark.parametrize("to_journal", [True, False], ids=["journal", "redirected"])
def test_variable_counts_only_for_the_very_stream(tmp_path: Path, *, to_journal: bool) -> None:
    reader, writer = os.pipe()
    found = os.fstat(writer)
    code = "from agentina.system import journal; print(journal.is_stderr())"
    with (tmp_path / "other").open("w") as other:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer if to_journal else other,
            env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, text=True, check=True,
        )  # fmt: skip
    os.close(reader)
    os.close(writer)
    assert done.stdout.strip() == str(to_journal)


@pytest.mark.parametrize("value", ["", "8", "8:", ":1", "a:b", "0:0", "8:²"])
def test_nonsense_in_the_variable_is_no_journal(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", value)
    assert not journal.is_stderr()


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_readable_is_what_this_user_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = (tmp_path / "var", tmp_path / "run")
    assert journal.is_readable(stores), "no journal yet: journalctl says so"
    (tmp_path / "run/1f").mkdir(parents=True)
    (tmp_path / "run/1f/system.journal").touch()
    assert journal.is_readable(stores)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert not journal.is_readable(stores)

from __future__ import annotations

import concurrent.futures
import os
import resource
import signal
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.gateway import budgets, record, usage
from agentina.protocol import budgets as protocol_budgets
from agentina.protocol import jobs
from tests.fakes import procfs

CHARGE = budgets.Charge(used=usage.Usage(input=5, output=7), cost_nano=99, tool_calls=1)
ENTRIES: list[record.Entry] = [
    record.Began(at_ms=1000),
    record.Asked(number=1, model="m", reserved=budgets.Charge(used=usage.Usage(input=100), estimated=True)),
    record.Asked(number=2, model="m", reserved=CHARGE),
    record.Ended(number=1, end="completed", charge=CHARGE, at_ms=2000),
    record.Refusal(code="EGRESS_REFUSED", reason="scope", host="evil.example.com"),
    record.Reached(host="pypi.org:443"),
    record.Asked(number=3, model="m", reserved=CHARGE),
    record.Ended(number=3, end="refused"),
    record.Raised(limits=jobs.Budget(tokens=5)),
]


def test_a_record_tells_the_same_story_again(tmp_path: Path) -> None:
    written = record.Record(tmp_path)
    for entry in ENTRIES:
        written.write(entry)
    written.sync()
    written.close()
    story = record.read(tmp_path)
    assert story is not None
    assert story.began == ENTRIES[0]
    assert story.totals == budgets.Totals(used=CHARGE.used, cost_nano=99, tool_calls=1, calls=1)
    assert list(story.open) == [2]
    assert (story.last_number, story.limits) == (3, jobs.Budget(tokens=5))
    assert [one.host for one in story.refusals] == ["evil.example.com"]
    assert story.reached == ["pypi.org:443"]


def test_what_a_newer_release_wrote_takes_nothing_along(tmp_path: Path) -> None:
    """A release that is taken back must not lose what was used before and after."""
    body = b'{"kind":"from-the-future","number":1}'
    later = [record.encode(ENTRIES[2]), record.encode(record.Ended(number=2, end="completed", charge=CHARGE))]
    content = b"".join([record.encode(ENTRIES[0]), b"%08x %s\n" % (zlib.crc32(body), body), *later])
    (tmp_path / record.NAME).write_bytes(content)
    record.Record(tmp_path).close()
    story = record.read(tmp_path)
    assert story is not None
    assert (story.size, story.totals.calls) == (len(content), 1)


def test_next_writer_waits_for_the_one_before(tmp_path: Path) -> None:
    """And then knows all that it wrote: entries of two would lie upon each other."""
    former = record.Record(tmp_path)
    former.write(ENTRIES[1])
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(record.wait_until_free, tmp_path)
        while not procfs.waits_for_lock(os.getpid()):
            assert not waiting.done()
        with pytest.raises(errors.AgentinaError) as caught:
            record.Record(tmp_path)
        former.write(ENTRIES[3])
        former.close()
        waiting.result()
    assert caught.value.code == "STATE_UNWRITABLE"
    after = record.Record(tmp_path)
    assert (after.story.open, after.story.totals.calls) == ({}, 1)
    after.close()


def test_how_full_the_context_was_stays_known_over_calls_that_do_not_say(tmp_path: Path) -> None:
    """Also those of a release that knew nothing of it."""
    filled = record.Filled(conversation="a", tokens=90, window=100)
    old = b'{"kind":"end","number":2,"end":"completed","charge":null,"at_ms":1}'
    lines = [
        record.encode(ENTRIES[1]), record.encode(record.Ended(number=1, end="completed", context=filled)),
        record.encode(ENTRIES[2]), b"%08x %s\n" % (zlib.crc32(old), old),
    ]  # fmt: skip
    (tmp_path / record.NAME).write_bytes(b"".join(lines))
    story = record.read(tmp_path)
    assert story is not None
    assert (story.context, story.open) == (filled, {})


@given(st.integers(0, 2000))
def test_a_cut_anywhere_leaves_the_whole_lines_before_it(at: int) -> None:
    lines = [record.encode(entry) for entry in ENTRIES]
    content = b"".join(lines)
    at = min(at, len(content))
    story = record.parse(content[:at])
    whole = 0
    for line in lines:
        if whole + len(line) > at:
            break
        whole += len(line)
    assert story.size == whole


@given(st.binary(max_size=200))
def test_any_content_is_read(content: bytes) -> None:
    record.parse(content)
    record.parse(record.encode(ENTRIES[0]) + content)


def test_after_a_torn_line_writing_goes_on(tmp_path: Path) -> None:
    whole = record.encode(ENTRIES[0])
    (tmp_path / record.NAME).write_bytes(whole + record.encode(ENTRIES[1])[:20])
    again = record.Record(tmp_path)
    again.write(ENTRIES[2])
    again.close()
    story = record.read(tmp_path)
    assert story is not None
    assert (story.began, list(story.open)) == (ENTRIES[0], [2])


def test_no_room_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    written = record.Record(tmp_path)
    written.write(ENTRIES[0])
    size = (tmp_path / record.NAME).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(errors.AgentinaError):
            written.write(ENTRIES[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / record.NAME).stat().st_size == size
    written.write(ENTRIES[2])
    written.close()
    story = record.read(tmp_path)
    assert story is not None
    assert list(story.open) == [2]


def test_refusals_are_bounded(tmp_path: Path) -> None:
    written = record.Record(tmp_path)
    for number in range(500):
        written.write(record.Refusal(code="EGRESS_REFUSED", reason="scope", host=f"{number}.example.com"))
    assert len(written.story.refusals) == 200
    written.close()


def test_usage_is_told_by_day_and_model_and_open_calls_in_full(tmp_path: Path) -> None:
    written = record.Record(tmp_path)
    day, late = "2026-11-21", "2026-11-22"
    for number, (model, when) in enumerate([("a", day), ("b", day), ("a", day), ("a", late)], 1):
        written.write(record.Asked(number=number, model=model, reserved=CHARGE, day=when))
        if number < 4:
            written.write(record.Ended(number=number, end="completed", charge=CHARGE, at_ms=0))
    written.close()
    story = record.read(tmp_path)
    assert story is not None
    assert {(row.day, row.model): row.calls for row in story.usage()} == {(day, "a"): 2, (day, "b"): 1}
    story.conclude()
    assert {(row.day, row.model): row.calls for row in story.usage()} == {(day, "a"): 2, (day, "b"): 1, (late, "a"): 1}
    assert sum(row.cost_nano for row in story.usage()) == story.totals.cost_nano == 4 * 99


def test_a_record_without_days_counts_on_the_day_of_the_end() -> None:
    asked = b'{"kind":"ask","number":1,"model":"m","reserved":{}}'
    line = b"%08x %s\n" % (zlib.crc32(asked), asked)
    story = record.parse(line + record.encode(record.Ended(number=1, end="completed", charge=CHARGE, at_ms=86_400_000)))
    assert [row.day for row in story.usage()] == ["1970-01-02"]


def test_a_task_that_names_model_after_model_has_few_rows() -> None:
    story = record.Story()
    for number in range(200):
        story.take(record.Asked(number=number, model=f"m{number}", reserved=CHARGE, day="2026-11-21"))
        story.take(record.Ended(number=number, end="completed", charge=CHARGE))
    rows = story.usage()
    assert len(rows) == protocol_budgets.MAX_ROWS + 1
    assert sum(row.calls for row in rows) == 200

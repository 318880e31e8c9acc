from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.host.instance import outbox, outbox_file
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.fakes import deadlines

GOOD = wire.Outcome(state=State.SUCCEEDED, reason=Reason.EXIT_ZERO)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[outbox.Outbox]:
    opened = await outbox.Outbox.open(tmp_path / "outbox")
    yield opened
    await opened.close()


async def reopen(box: outbox.Outbox, path: Path) -> outbox.Outbox:
    await box.close()
    return await outbox.Outbox.open(path / "outbox")


def bodies(box: outbox.Outbox) -> list[wire.Report]:
    waiting = box.first(most=1000, most_bytes=1 << 30)
    return [msgspec.json.decode(report.body, type=wire.Report) for report in waiting]


async def test_reports_are_numbered_durable_and_in_order(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    assert not box.pending.is_set()
    durable = [box.report(f"job_{number}", "accepted") for number in range(5)]
    assert box.waiting == 0, "a report is offered only when it is durable"
    await asyncio.gather(*durable)
    stream = box.stream
    again = await reopen(box, tmp_path)
    assert (again.stream, again.fresh) == (stream, False)
    assert [(report.number, report.task_id) for report in bodies(again)] == [(n + 1, f"job_{n}") for n in range(5)]
    assert again.pending.is_set()
    await again.close()


async def test_report_that_cannot_be_said_takes_no_number(box: outbox.Outbox) -> None:
    with pytest.raises(UnicodeEncodeError):
        box.report("a", "note", detail="\udcff")
    await box.report("b", "note", detail="said")
    assert [report.number for report in bodies(box)] == [1]


async def test_reports_of_one_moment_share_a_commit(box: outbox.Outbox) -> None:
    first, second = box.report("a", "accepted"), box.report("b", "accepted")
    assert first is second
    await first


async def test_the_end_of_a_task_is_sent_at_once_and_the_rest_gathers(
    box: outbox.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 1.0)
    box.report("a", "running")
    await box.commit()
    assert (box.waiting, box.pending.is_set()) == (1, False)
    await asyncio.wait_for(box.pending.wait(), deadlines.HANG)
    assert box.acknowledge(1)
    box.report("a", "finished", outcome=GOOD)
    assert (box.waiting, box.pending.is_set()) == (0, True), "the sender commits before it sends"
    assert box.acknowledge(1)
    assert box.pending.is_set(), "there is still something to send"


async def test_what_nobody_waits_for_is_written_all_the_same(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    await asyncio.wait_for(box.report("a", "running"), deadlines.HANG)
    assert box.waiting == 1
    await box.close()


async def test_fast_disk_is_waited_for_on_the_loop_and_a_slow_one_in_the_thread(box: outbox.Outbox) -> None:
    for _ in range(60):
        box._pace.note(0.0001)
    durable = box.report("a", "accepted")
    box.begin_commit()
    assert durable.done()
    box._pace.note(0.5)
    durable = box.report("b", "accepted")
    box.begin_commit()
    later = box.report("c", "accepted")
    assert not durable.done()
    await box.commit()
    assert (durable.done(), later.done(), box.waiting) == (True, True, 3)


async def test_log_is_copied_into_the_database_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_CHECKPOINT_ROWS", 50)
    box = await outbox.Outbox.open(tmp_path / "outbox")
    for _ in range(60):
        box._pace.note(0.0001)
    for number in range(400):
        box.report("a", "note", detail=f"{number}" * 200)
        await box.commit()
    log = (tmp_path / "outbox/outbox.db-wal").stat().st_size
    assert log < 200 * 4096, "it begins anew after each copy"
    await box.close()


async def test_what_follows_from_a_commit_happens_for_each_task(box: outbox.Outbox) -> None:
    heard: list[str] = []

    def fail() -> None:
        heard.append("a")
        raise ValueError

    box.report("a", "accepted", then=fail)
    box.report("b", "accepted", then=lambda: heard.append("b"))
    assert not heard
    await box.commit()
    assert heard == ["a", "b"]


async def test_numbers_go_on_after_everything_was_acknowledged(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    await box.report("a", "accepted")
    await box.report("a", "running", pid=4)
    assert box.acknowledge(2)
    assert (box.waiting, box.pending.is_set()) == (0, False)
    again = await reopen(box, tmp_path)
    assert (again.waiting, again.last) == (0, 2)
    await again.report("a", "finishing")
    assert [report.number for report in bodies(again)] == [3]
    await again.close()


async def test_held_tasks_survive_with_their_final_report_until_released(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    for task in ("a", "b"):
        box.hold(task, b"record of " + task.encode())
        box.report(task, "accepted")
    await box.report("a", "finished", outcome=GOOD)
    again = await reopen(box, tmp_path)
    assert again.held["b"] == outbox.HeldRow(b"record of b", b"")
    assert msgspec.json.decode(again.held["a"].final, type=wire.Report).outcome == GOOD
    released: list[str] = []
    again.release("a", lambda: released.append("a"))
    assert not released
    await again.commit()
    assert released == ["a"]
    last = await reopen(again, tmp_path)
    assert set(last.held) == {"b"}
    await last.close()


async def test_first_is_bounded_in_number_and_bytes(box: outbox.Outbox) -> None:
    for _ in range(10):
        done = box.report("a", "note", detail="x" * 100)
    await done
    assert len(box.first(most=3, most_bytes=1 << 20)) == 3
    assert len(box.first(most=10, most_bytes=400)) == 2
    assert len(box.first(most=10, most_bytes=1)) == 1, "a single large one is sent all the same"


async def test_older_copy_of_the_file_begins_a_new_stream(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    await box.report("a", "accepted")
    said = []
    box.on_renewed = lambda: said.append(box.report("a", "accepted"))
    stream = box.stream
    assert not box.acknowledge(5)
    await said[0]
    assert box.stream != stream
    assert [report.number for report in bodies(box)] == [1]
    again = await reopen(box, tmp_path)
    assert [report.number for report in bodies(again)] == [1]
    await again.close()


async def test_new_stream_forgets_reports_under_way_but_keeps_holds(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    box.hold("a", b"record")
    promised = box.report("a", "accepted")
    box.renew("a test")
    await promised
    assert box.waiting == 0
    again = await reopen(box, tmp_path)
    assert (again.held["a"].record, again.waiting, again.last) == (b"record", 0, 0)
    await again.close()


async def test_damaged_file_is_set_aside_at_opening(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    await box.report("a", "accepted")
    stream = box.stream
    await box.close()
    (tmp_path / "outbox/outbox.db").write_bytes(b"not a database" * 500)
    again = await outbox.Outbox.open(tmp_path / "outbox")
    assert again.stream != stream
    assert again.fresh
    assert again.damage is not None
    assert again.damage.code == "STATE_CORRUPT"
    assert list((tmp_path / "outbox").glob("outbox.db.damaged-*"))
    await again.close()


async def test_damage_while_running_renews_and_keeps_the_promise(tmp_path: Path) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    await box.report("a", "accepted")

    def say_again() -> None:
        box.hold("a", b"again")
        box.report("a", "accepted")

    box.on_renewed = say_again
    failing = box._commit
    calls = []

    def damaged(statements: list[tuple[str, tuple[object, ...]]]) -> None:
        calls.append(1)
        if len(calls) == 1:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        failing(statements)

    box._commit = damaged  # type: ignore[method-assign,assignment]
    await asyncio.wait_for(box.report("a", "running"), deadlines.HANG)
    assert [report.kind for report in bodies(box)] == ["accepted"]
    again = await reopen(box, tmp_path)
    assert again.held["a"].record == b"again"
    await again.close()


def malformed(*_: object) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


async def test_damage_that_cannot_be_set_aside_waits_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    box = await outbox.Outbox.open(tmp_path / "outbox")
    renewed = []
    box.on_renewed = lambda: renewed.append(box.report("a", "accepted"))
    with monkeypatch.context() as read_only:

        def refuse(*_: object, **__: object) -> Path:
            raise OSError(errno.EROFS, "Read-only file system")

        read_only.setattr(outbox_file, "set_aside", refuse)
        read_only.setattr(box, "_commit", malformed)
        said = box.report("a", "running")
        async with asyncio.timeout(deadlines.HANG):
            while box.trouble is None:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.shield(said), deadlines.HANG)
    await asyncio.wait_for(box.report("a", "note"), deadlines.HANG)
    assert ([report.kind for report in bodies(box)], len(renewed)) == (["accepted", "note"], 1)
    await box.close()


async def test_anomaly_on_its_way_to_the_disk_is_said_again_in_a_new_stream(box: outbox.Outbox) -> None:
    found = wire.Anomaly(id="one", kind="host", code="X", summary="s")
    box.report("", "anomaly", anomaly=found)
    box.begin_commit()
    box.renew("an old copy")
    await asyncio.wait_for(box.commit(), deadlines.HANG)
    assert [report.anomaly for report in bodies(box)] == [found]


async def test_full_disk_waits_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    box = await outbox.Outbox.open(tmp_path / "outbox")
    assert box._database is not None
    # A real SQLITE_FULL: the file may not grow.
    (pages,) = box._database.execute("PRAGMA page_count").fetchone()
    box._database.execute(f"PRAGMA max_page_count = {pages}")
    durable = box.report("a", "note", detail="x" * 4000)
    for _ in range(3):
        box.report("a", "note", detail="x" * 4000)
    async with asyncio.timeout(deadlines.HANG):
        while box.trouble is None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    assert not durable.done()
    assert box.trouble.code == errors.DISK_FULL.code
    box._database.execute("PRAGMA max_page_count = 100000")
    await asyncio.wait_for(durable, deadlines.HANG)
    assert box.waiting == 4
    assert str(box.trouble) == "None"
    await box.close()


@pytest.mark.parametrize(
    "change",
    ["ALTER TABLE held RENAME COLUMN record TO content", "DROP TABLE reports; CREATE TABLE reports (content BLOB)"],
)
async def test_file_that_another_release_made_something_else_of_is_set_aside(tmp_path: Path, change: str) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    box.hold("a", b"record")
    await box.report("a", "accepted")
    await box.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox/outbox.db")) as database:
        database.executescript(change)
    with pytest.raises(errors.AgentinaError):
        outbox_file.examine(tmp_path / "outbox")
    again = await outbox.Outbox.open(tmp_path / "outbox")
    assert again.fresh
    assert again.damage is not None
    assert (again.held, again.waiting, again.stream == box.stream) == ({}, 0, False)
    await again.report("a", "note")
    await again.close()


async def test_opened_without_room_it_is_shared_again_when_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await outbox.Outbox.open(tmp_path / "outbox")
    box.hold("a", b"record")
    await box.report("a", "accepted")
    connect = outbox_file.connect

    def refuse(path: Path, *, alone: bool = False) -> sqlite3.Connection:
        if not alone:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
            raise error
        return connect(path, alone=alone)

    with monkeypatch.context() as patch:
        patch.setattr(outbox_file, "connect", refuse)
        patch.setattr(outbox_file, "BUSY_SECONDS", 0.01)
        again = await reopen(box, tmp_path)
        assert (list(again.held), again.waiting, again.fresh) == (["a"], 1, False)
        (tmp_path / "outbox/outbox.db-shm").touch()  # as it is left where there is no room for more of it
        assert outbox_file.examine(tmp_path / "outbox") == (0, 0), "nobody can tell"
        (tmp_path / "outbox/outbox.db-shm").unlink()
        await again.report("a", "finished", outcome=GOOD)
    await again.report("a", "note")
    assert outbox_file.examine(tmp_path / "outbox") == (3, 1)
    await again.close()


async def test_one_that_cannot_be_opened_to_be_shared_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    box = await outbox.Outbox.open(tmp_path / "outbox")
    await box.report("a", "accepted")
    connect, left = outbox_file.connect, [1]

    def refuse(path: Path, *, alone: bool = False) -> sqlite3.Connection:
        if left:
            left.pop()
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, alone=alone)

    monkeypatch.setattr(outbox_file, "connect", refuse)
    box._is_alone = True
    await asyncio.wait_for(box.report("a", "running"), deadlines.HANG)
    await asyncio.wait_for(box.report("a", "note"), deadlines.HANG)
    assert (box.fresh, box.trouble, [report.number for report in bodies(box)]) == (True, None, [1, 2, 3])
    stream = box.stream
    again = await reopen(box, tmp_path)
    assert (again.stream, again.waiting) == (stream, 3)
    await again.close()


async def test_indigestible_report_is_reduced_under_its_number(box: outbox.Outbox) -> None:
    await box.report("a", "finished", outcome=msgspec.structs.replace(GOOD, detail="x" * 4000))
    box.reduce_first("too large")
    reduced = bodies(box)[0]
    assert (reduced.number, reduced.kind) == (1, "finished")
    assert reduced.outcome is not None
    assert reduced.outcome.state is State.SUCCEEDED
    box.reduce_first("still not accepted")
    assert bodies(box)[0].kind == "note"

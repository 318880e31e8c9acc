from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.control.store import engine
from tests.fakes import deadlines


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[engine.Store]:
    opened = engine.Store(tmp_path / "control.db", now_ms=1)
    await opened.write(lambda tx: tx.execute("CREATE TABLE numbers (n INTEGER UNIQUE, text TEXT)"))
    yield opened
    await opened.close()


def insert(number: int, text: str = "") -> engine.Operation[int]:
    return lambda tx: tx.execute("INSERT INTO numbers VALUES (:n, :text)", n=number, text=text)


def is_failing(store: engine.Store) -> bool:
    return store.failure is not None


def numbers(store: engine.Store) -> list[int]:
    return [row["n"] for row in store.read(lambda tx: tx.all("SELECT n FROM numbers ORDER BY n"))]


async def test_a_write_is_visible_to_reads_and_other_connections(store: engine.Store, tmp_path: Path) -> None:
    await store.write(insert(1))
    assert numbers(store) == [1]
    other = sqlite3.connect(tmp_path / "control.db")
    assert other.execute("SELECT count(*) FROM numbers").fetchone() == (1,)
    other.close()


async def test_an_operation_that_raises_undoes_only_itself(store: engine.Store) -> None:
    def half_done(tx: engine.Transaction) -> None:
        insert(2)(tx)
        raise errors.TOKEN_REVOKED(revoked_at="now")

    results = await asyncio.gather(
        store.write(insert(1)), store.write(half_done), store.write(insert(3)), store.write(insert(1)),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(result) for result in results] == [int, errors.AgentinaError, int, sqlite3.IntegrityError]
    assert numbers(store) == [1, 3]


async def test_the_only_operation_of_a_batch_undoes_itself_too(store: engine.Store) -> None:
    def half_done(tx: engine.Transaction) -> None:
        insert(2)(tx)
        raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"):
        await store.write(half_done)
    await store.write(insert(3))
    assert numbers(store) == [3]


async def test_concurrent_writes_share_commits(store: engine.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = 0
    commit = store._commit

    def counted() -> Exception | None:
        nonlocal commits
        commits += 1
        return commit()

    monkeypatch.setattr(store, "_commit", counted)
    await asyncio.gather(*(store.write(insert(number)) for number in range(300)))
    assert numbers(store) == list(range(300))
    assert commits <= 2


async def test_operations_run_in_the_order_of_the_calls(store: engine.Store) -> None:
    order: list[int] = []

    def note(number: int) -> engine.Operation[None]:
        return lambda _: order.append(number)

    await asyncio.gather(*(store.write(note(number)) for number in range(1200)))
    assert order == list(range(1200))


async def test_a_full_disk_fails_the_whole_batch_and_recovers(store: engine.Store) -> None:
    await store.write(insert(0))
    ((pages,),) = store.read(lambda tx: tx.all("PRAGMA page_count"))
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")

    results = await asyncio.gather(
        store.write(insert(1)), store.write(insert(2, "x" * 100_000)), store.write(insert(3)), return_exceptions=True
    )
    assert [getattr(result, "code", result) for result in results] == ["STORAGE_FULL"] * 3
    assert numbers(store) == [0]
    assert is_failing(store)
    with pytest.raises(errors.AgentinaError):
        await store.write(insert(4, "x" * 100_000))

    store._writer.execute("PRAGMA max_page_count = 100000")
    await store.check()
    assert not is_failing(store)
    await store.write(insert(5, "x" * 100_000))
    assert numbers(store) == [0, 5]


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    store = engine.Store(tmp_path / "control.db", now_ms=1)

    def put(number: int) -> engine.Operation[int]:
        return lambda tx: tx.execute("INSERT INTO meta VALUES (:key, '')", key=str(number))

    writes = [store.write(put(number)) for number in range(1000)]
    await store.close()
    assert [await write for write in writes] == [1] * 1000
    with pytest.raises(errors.AgentinaError) as caught:
        store.write(insert(1))
    assert caught.value.code == "SHUTTING_DOWN"


async def test_a_caller_that_gave_up_harms_nobody(store: engine.Store) -> None:
    first = store.write(insert(1))
    second = store.write(insert(2))
    first.cancel()
    await second
    assert 2 in numbers(store)


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    with pytest.raises(errors.AgentinaError, match=r"control\.db"):
        engine.Store(path, now_ms=1)


async def test_the_loop_never_waits_for_a_slow_disk(store: engine.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    commit = store._commit

    def watched() -> Exception | None:
        threads.append(threading.current_thread() is threading.main_thread())
        return commit()

    monkeypatch.setattr(store, "_commit", watched)
    store._pace._expected = 0.0
    await store.write(insert(1))
    store._pace.note(0.5)
    await store.write(insert(2))
    assert threads == [True, False]
    assert numbers(store) == [1, 2]


async def test_the_log_is_copied_into_the_database_now_and_then(store: engine.Store, tmp_path: Path) -> None:
    store._pace._expected = 0.0
    for start in range(0, 15_000, 500):
        await asyncio.gather(*(store.write(insert(start + number, "x" * 400)) for number in range(500)))
    rows = len(numbers(store)) * 400
    assert (tmp_path / "control.db").stat().st_size > rows / 2
    assert (tmp_path / "control.db-wal").stat().st_size < rows


async def test_patient_operations_share_a_transaction_and_do_not_hold_up_others(
    store: engine.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 0.5)  # longer than any disk takes for one commit
    order: list[str] = []

    def operation(name: str) -> engine.Operation[None]:
        return lambda _: order.append(name)

    await store.write(operation("alone, at once"), is_patient=True)
    waiting = [store.write(operation(f"patient {number}"), is_patient=True) for number in (1, 2)]
    await store.write(operation("in a hurry"))
    assert order == ["alone, at once", "in a hurry"]
    assert not any(future.done() for future in waiting)
    await asyncio.wait_for(asyncio.gather(*waiting), deadlines.HANG)
    assert order[2:] == ["patient 1", "patient 2"]


async def test_closing_writes_what_waits_patiently(tmp_path: Path) -> None:
    store = engine.Store(tmp_path / "control.db", now_ms=1)
    await store.write(lambda tx: tx.execute("CREATE TABLE numbers (n INTEGER UNIQUE, text TEXT)"), is_patient=True)
    waiting = store.write(insert(1), is_patient=True)
    await store.close()
    assert await waiting == 1

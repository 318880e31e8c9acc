from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from agentina.control.store import audit, engine
from agentina.system import tasks


async def filled(path: Path) -> engine.Store:
    store = engine.Store(path / "control.db", now_ms=1)

    def fill(tx: engine.Transaction) -> None:
        for number in range(5):
            audit.append(tx, actor="operator:a", action="token.create", subject=f"t{number}", detail={"n": number},
                         now_ms=number)  # fmt: skip

    await store.write(fill)
    return store


async def test_the_chain_holds_and_is_in_order(tmp_path: Path) -> None:
    store = await filled(tmp_path)
    assert await audit.first_broken(store) is None
    rows = store.read(lambda tx: audit.records(tx, after=1, limit=2))
    assert [(row["number"], row["subject"]) for row in rows] == [(2, "t1"), (3, "t2")]
    await store.close()


async def test_others_have_their_turn_while_a_long_chain_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_SLICE", 2)
    store, turns = await filled(tmp_path), 0
    verifying = tasks.start(audit.first_broken(store), name="verify")
    while not verifying.done():
        turns += 1
        await asyncio.sleep(0)
    assert verifying.result() is None
    assert turns >= 3
    await store.close()


@pytest.mark.parametrize(
    ("sql", "broken"),
    [
        ("UPDATE audit SET subject = 'forged' WHERE number = 3", 3),
        ("DELETE FROM audit WHERE number = 2", 2),
        ("UPDATE audit SET detail = '{}' WHERE number = 5", 5),
    ],
)
async def test_tampering_past_the_triggers_is_found(tmp_path: Path, sql: str, broken: int) -> None:
    store = await filled(tmp_path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        await store.write(lambda tx: tx.execute(sql))
    other = sqlite3.connect(tmp_path / "control.db")
    other.executescript(f"DROP TRIGGER audit_is_append_only_1; DROP TRIGGER audit_is_append_only_2; {sql};")
    other.close()
    assert await audit.first_broken(store) == broken
    await store.close()

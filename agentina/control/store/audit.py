"""The audit: append-only, hash-chained. Changing or removing a record breaks every hash after it."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from agentina.control.store import engine

#: The hash before the first record.
GENESIS: Final = "0" * 64


def append(
    tx: engine.Transaction, *, actor: str, action: str, subject: str, now_ms: int, detail: dict[str, Any] | None = None
) -> None:
    """Add a record. Operations run one after the other, so the last record is the one before."""
    last = tx.one("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1")
    number, before = (1, GENESIS) if last is None else (last[0] + 1, last[1])
    text = msgspec.json.encode(detail or {}, order="sorted").decode()
    tx.execute(
        "INSERT INTO audit (number, at_ms, actor, action, subject, detail, hash)"
        " VALUES (:number, :at, :actor, :action, :subject, :detail, :hash)",
        number=number, at=now_ms, actor=actor, action=action, subject=subject, detail=text,
        hash=_hash(before, [number, now_ms, actor, action, subject, text]),
    )  # fmt: skip


def records(tx: engine.Transaction, *, after: int, limit: int) -> list[engine.Row]:
    """Records in order."""
    return tx.all("SELECT * FROM audit WHERE number > :after ORDER BY number LIMIT :limit", after=after, limit=limit)


def first_broken(tx: engine.Transaction) -> int | None:
    """The number of the first record that does not follow from the one before; None: the chain is whole."""
    before, expected = GENESIS, 1
    while page := records(tx, after=expected - 1, limit=1000):
        for row in page:
            content = [row[key] for key in ("number", "at_ms", "actor", "action", "subject", "detail")]
            if row["number"] != expected or row["hash"] != _hash(before, content):
                return expected
            before, expected = row["hash"], expected + 1
    return None


def _hash(before: str, content: list[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode([before, *content])).hexdigest()

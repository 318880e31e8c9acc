"""The audit: append-only, hash-chained. Changing or removing a record breaks every hash after it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
from typing import Any, Final

import msgspec

from agentina.control.store import engine

#: Records looked at for one page: a filter that fits few must not hold up everything else.
MOST_LOOKED_AT: Final = 10_000
#: Records verified before others have their turn: a millisecond.
_SLICE: Final = 500
#: The hash before the first record.
GENESIS: Final = "0" * 64

_WANTED: Final = (
    "SELECT * FROM audit WHERE number BETWEEN :low AND :high AND at_ms >= :since"
    " AND :actor IN (substr(actor, 1, length(:actor)), substr(actor, instr(actor, ':') + 1, length(:actor)))"
    " AND substr(action, 1, length(:action)) = :action AND substr(subject, 1, length(:subject)) = :subject"
)
_OLDEST_FIRST: Final = _WANTED + " ORDER BY number LIMIT :limit"
_NEWEST_FIRST: Final = _WANTED + " ORDER BY number DESC LIMIT :limit"


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which records are wanted. Texts are beginnings: ``job`` finds ``job.cancel``, and a job's id its tasks too."""

    #: With or without what stands before the colon.
    actor: str = ""
    action: str = ""
    subject: str = ""
    #: Wall clock, milliseconds since the epoch.
    since_ms: int = 0


def page(
    tx: engine.Transaction, wanted: Filter, *, after: int, before: int, limit: int
) -> tuple[list[engine.Row], int | None]:
    """Some of the records with numbers between ``after`` and ``before``, and where the next page begins.

    With ``before`` (0: no end) they come newest first and it is the next page's ``before``; otherwise oldest first,
    and it is the next one's ``after``. A page may be empty and not the last: it looks at :data:`MOST_LOOKED_AT`.
    """
    newest = tx.one("SELECT number FROM audit ORDER BY number DESC LIMIT 1")
    first, last = after + 1, 0 if newest is None else newest[0]
    if before:
        last = min(last, before - 1)
        low, high = max(first, last - MOST_LOOKED_AT + 1), last
    else:
        low, high = first, min(last, first + MOST_LOOKED_AT - 1)
    rows = tx.all(
        _NEWEST_FIRST if before else _OLDEST_FIRST, low=low, high=high, since=wanted.since_ms, actor=wanted.actor,
        action=wanted.action, subject=wanted.subject, limit=limit,
    )  # fmt: skip
    if len(rows) == limit:
        low = high = rows[-1]["number"]
    if before:
        return rows, low if low > first else None
    return rows, high if high < last else None


def records(tx: engine.Transaction, *, after: int, limit: int) -> list[engine.Row]:
    """Records in order."""
    return tx.all("SELECT * FROM audit WHERE number > :after ORDER BY number LIMIT :limit", after=after, limit=limit)


async def first_broken(store: engine.Store) -> int | None:
    """The number of the first record that does not follow from the one before; None: the chain is whole.

    Others have their turn in between, and what they append is looked at as well: there may be millions.
    """
    before, expected = GENESIS, 1
    while page := store.read(functools.partial(records, after=expected - 1, limit=_SLICE), snapshot=False):
        for row in page:
            content = [row[key] for key in ("number", "at_ms", "actor", "action", "subject", "detail")]
            if row["number"] != expected or row["hash"] != _hash(before, content):
                return expected
            before, expected = row["hash"], expected + 1
        await asyncio.sleep(0)
    return None


def _hash(before: str, content: list[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode([before, *content])).hexdigest()

"""Rollouts, their members and their timelines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

import msgspec

from agentina.control.rollouts import figures, model, selection
from agentina.control.store import engine

#: Lines of a timeline that are read at once.
MAX_LINES: Final = 500

_MEMBER: Final = (
    "standing", "stage", "attempt", "since_ms", "not_before_ms", "reason", "previous", "skipped", "mark", "mark_ms",
    "past",
)  # fmt: skip
_INSERT_MEMBER: Final = (
    f"INSERT OR REPLACE INTO rollout_members (rollout_id, agent_id, {', '.join(_MEMBER)})"  # noqa: S608 - constants
    f" VALUES (?, ?{', ?' * len(_MEMBER)})"
)
_figures: Final = msgspec.json.Decoder(figures.Figures)
_sample: Final = msgspec.json.Decoder(figures.Sample)


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A rollout as it lies in the database."""

    id: int
    rollout: model.Rollout
    selection: selection.Selection
    created_ms: int
    created_by: str
    revision: int


def insert(
    tx: engine.Transaction, rollout: model.Rollout, chosen: selection.Selection, *, actor: str, now_ms: int
) -> int:
    """Store a new rollout; its row id is returned."""
    return tx.insert(
        "INSERT INTO rollouts (public_id, plan, selection, state, stage, phase, watched_seconds, reason, gate,"
        " superseded, created_ms, created_by) VALUES (:public_id, :plan, :selection, :state, :stage, :phase,"
        " :watched_seconds, :reason, :gate, :superseded, :now, :actor)",
        plan=_json(rollout.plan), selection=_json(chosen), now=now_ms, actor=actor, public_id=rollout.public_id,
        **_changing(rollout),
    )  # fmt: skip


def save(tx: engine.Transaction, stored: Stored, rollout: model.Rollout) -> bool:
    """Write back what changed; False: somebody else changed it since ``stored`` was read, and nothing is written."""
    return bool(
        tx.execute(
            "UPDATE rollouts SET state = :state, stage = :stage, phase = :phase, watched_seconds = :watched_seconds,"
            " reason = :reason, gate = :gate, superseded = :superseded, revision = revision + 1"
            " WHERE id = :id AND revision = :revision",
            id=stored.id,
            revision=stored.revision,
            **_changing(rollout),
        )
    )


def find(tx: engine.Transaction, public_id: str) -> Stored | None:
    """The rollout with this id."""
    row = tx.one("SELECT * FROM rollouts WHERE public_id = :id", id=public_id)
    return None if row is None else _from_row(row)


def by_id(tx: engine.Transaction, rollout: int) -> Stored:
    """The rollout in this row."""
    row = tx.one("SELECT * FROM rollouts WHERE id = :id", id=rollout)
    assert row is not None, rollout
    return _from_row(row)


def newest(tx: engine.Transaction, *, limit: int) -> list[Stored]:
    """The newest rollouts first."""
    return [_from_row(row) for row in tx.all("SELECT * FROM rollouts ORDER BY id DESC LIMIT :limit", limit=limit)]


def living(tx: engine.Transaction) -> list[Stored]:
    """Rollouts that something may still happen to, the oldest first."""
    rows = tx.all(
        "SELECT * FROM rollouts r WHERE NOT superseded OR EXISTS (SELECT 1 FROM rollout_members m"
        " WHERE m.rollout_id = r.id AND m.standing = 'rolling-back') ORDER BY id LIMIT 1000"
    )
    return [_from_row(row) for row in rows]


def members(tx: engine.Transaction, rollout: int) -> list[model.Member]:
    """All members; those of removed agents as well."""
    rows = tx.all("SELECT * FROM rollout_members WHERE rollout_id = :id ORDER BY agent_id", id=rollout)
    return [_member(row) for row in rows]


def some_members(tx: engine.Transaction, rollout: int, after: int, most: int) -> list[model.Member]:
    """The first members whose agents' row ids are beyond ``after``."""
    rows = tx.all(
        "SELECT * FROM rollout_members WHERE rollout_id = :id AND agent_id > :after ORDER BY agent_id LIMIT :most",
        id=rollout, after=after, most=most,
    )  # fmt: skip
    return [_member(row) for row in rows]


def save_members(tx: engine.Transaction, rollout: int, changed: Iterable[model.Member]) -> None:
    """Store members that are new or changed."""
    save_rows(tx, member_rows(rollout, changed))


def save_rows(tx: engine.Transaction, rows: list[list[object]]) -> None:
    """The same, made ready by :func:`member_rows`."""
    tx.many(_INSERT_MEMBER, rows)


def member_rows(rollout: int, changed: Iterable[model.Member]) -> list[list[object]]:
    """Members as rows. It takes a while where they are many, and may be done in a thread."""
    rows: list[list[object]] = []
    for member in changed:
        mark = None if member.mark is None else _json(member.mark)
        rows.append([
            rollout, member.agent, member.standing.value, member.stage, member.attempt, member.since_ms,
            member.not_before_ms, member.reason, member.previous, member.skipped, mark, member.mark_ms,
            _json(member.past),
        ])  # fmt: skip
    return rows


def counts(tx: engine.Transaction, rollout: int) -> dict[str, int]:
    """How many members of a rollout stand where."""
    rows = tx.all(
        "SELECT standing, count(*) AS agents FROM rollout_members WHERE rollout_id = :id GROUP BY standing", id=rollout
    )
    return {row["standing"]: row["agents"] for row in rows}


def standings(tx: engine.Transaction) -> list[engine.Row]:
    """How many agents of each active rollout stand where."""
    return tx.all(
        "SELECT r.public_id, m.standing, count(*) AS agents FROM rollouts r JOIN rollout_members m"
        " ON m.rollout_id = r.id WHERE r.state IN ('running', 'paused', 'rolling-back')"
        " GROUP BY r.public_id, m.standing LIMIT 1000"
    )


def tell(tx: engine.Transaction, rollout: int, text: str, *, now_ms: int) -> None:
    """Add a line to the timeline."""
    row = tx.one("UPDATE rollouts SET lines = lines + 1 WHERE id = :id RETURNING lines", id=rollout)
    assert row is not None
    tx.execute(
        "INSERT INTO rollout_lines (rollout_id, number, at_ms, text) VALUES (:rollout, :number, :at, :text)",
        rollout=rollout, number=row[0], at=now_ms, text=text,
    )  # fmt: skip


def lines(tx: engine.Transaction, rollout: int) -> list[engine.Row]:
    """The newest lines of the timeline, in order."""
    rows = tx.all(
        "SELECT number, at_ms, text FROM rollout_lines WHERE rollout_id = :id ORDER BY number DESC LIMIT :limit",
        id=rollout, limit=MAX_LINES,
    )  # fmt: skip
    return rows[::-1]


def _changing(rollout: model.Rollout) -> dict[str, object]:
    return {
        "state": rollout.state.value, "stage": rollout.stage, "phase": rollout.phase,
        "watched_seconds": rollout.watched_seconds, "reason": rollout.reason, "gate": rollout.gate,
        "superseded": rollout.superseded,
    }  # fmt: skip


def _from_row(row: engine.Row) -> Stored:
    rollout = model.Rollout(
        public_id=row["public_id"], plan=msgspec.json.decode(row["plan"], type=model.Plan),
        state=model.State(row["state"]), stage=row["stage"], phase=row["phase"],
        watched_seconds=row["watched_seconds"], reason=row["reason"], gate=row["gate"],
        superseded=bool(row["superseded"]),
    )  # fmt: skip
    chosen = msgspec.json.decode(row["selection"], type=selection.Selection)
    return Stored(row["id"], rollout, chosen, row["created_ms"], row["created_by"], row["revision"])


def _member(row: engine.Row) -> model.Member:
    return model.Member(
        agent=row["agent_id"], standing=model.Standing(row["standing"]), stage=row["stage"], attempt=row["attempt"],
        since_ms=row["since_ms"], not_before_ms=row["not_before_ms"], reason=row["reason"], previous=row["previous"],
        skipped=bool(row["skipped"]), mark=None if row["mark"] is None else _figures.decode(row["mark"]),
        mark_ms=row["mark_ms"], past=_sample.decode(row["past"]),
    )  # fmt: skip


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

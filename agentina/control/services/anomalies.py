"""Anomalies: reports added up to findings, and what operators do with them.

Bounded against a fleet that reports without end: a host limits itself (:mod:`agentina.host.work.anomalies`), an anomaly
keeps its newest reports, an organization :data:`MAX_UNRESOLVED` different ones (further ones are added up by kind and
code alone), and closed ones go after :data:`KEEP_SECONDS`.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.services import changes
from agentina.control.store import anomalies, audit, engine, tasks
from agentina.protocol import anomalies as rules
from agentina.protocol import api, names, wire

#: Different anomalies of one organization that may be unresolved.
MAX_UNRESOLVED: Final = 5000
#: Seconds for which closed ones are kept, and most of them.
KEEP_SECONDS: Final = 90 * 86_400
MAX_CLOSED: Final = 20_000
#: Seconds between removals, and rows in one operation.
_REMOVE_SECONDS: Final = 600.0
_CHUNK: Final = 200
#: The key of the bell that rings with every change.
BELL: Final = "anomalies"

_log = logging.getLogger(__name__)


def note(work: changes.Work, source: anomalies.Source, reported: wire.Anomaly) -> str:
    """Add a report; the anomaly's id is returned, empty when this report was applied before.

    What is said is checked again here: a host may be of another version, or lie.
    """
    tx, found = work.tx, rules.checked(reported)
    if anomalies.is_reported(tx, source, found.id):
        return ""
    fingerprint = rules.fingerprint(found)
    row = anomalies.find_same(tx, source.organization_id, fingerprint)
    if row is None and anomalies.count_unresolved(tx, source.organization_id) >= MAX_UNRESOLVED:
        found = _one_of_many(found)
        fingerprint = rules.fingerprint(found)
        row = anomalies.find_same(tx, source.organization_id, fingerprint)
    if row is None:
        public_id = ids.new_id("ano")
        number = anomalies.insert(tx, public_id, source, found, fingerprint=fingerprint, now_ms=work.now_ms)
        _log.warning("anomaly %s: %s: %s", public_id, found.code, found.summary,
                     extra={"action": "anomaly-opened", "code": found.code})  # fmt: skip
    else:
        number, public_id = row["id"], row["public_id"]
        before = rules.State(row["state"])
        after = rules.after(before, "reported")
        if after is not None and after is not before:
            text = "it happened again"
            anomalies.set_state(
                tx, number, after, actor="control-plane", reason=text, now_ms=work.now_ms, is_again=True
            )
    anomalies.add_report(tx, number, source, found, now_ms=work.now_ms)
    if source.task is not None:
        anomalies.note_task(tx, number, source.task, found.id)
        if row is not None and row["state"] == rules.State.ANSWERED:
            work.effects.answers += anomalies.give_answer(tx, number, task=source.task)
    work.effects.anomalies.append((found.kind, found.code))
    return public_id


def _one_of_many(found: wire.Anomaly) -> wire.Anomaly:
    """What is left of a report where there are too many different ones: as few as there are known kinds and codes."""
    return wire.Anomaly(
        id=found.id, count=found.count, first_at_ms=found.first_at_ms,
        kind=found.kind if found.kind in rules.KINDS else "host",
        code=found.code if found.code in errors.CATALOGUE else errors.ANOMALIES_LEFT_OUT.code,
        summary=f"many different ones: those beyond {MAX_UNRESOLVED} unresolved are added up here",
        evidence={"summary": found.summary, "release": found.release},
    )  # fmt: skip


def note_report(work: changes.Work, agent: fleet.Agent, report: wire.Report) -> None:
    """Add what a host reported, and tell the timeline of the job it is about."""
    if report.anomaly is None:
        return
    task = tasks.find(work.tx, *ids.split_task_id(report.task_id)) if names.is_task_id(report.task_id) else None
    if task is not None and task.agent_id != agent.id:
        task = None
    source = anomalies.Source(
        organization_id=agent.organization_id, agent_id=agent.id, at_ms=report.at_ms,
        task_id="" if task is None else report.task_id,
        task=None if task is None or task.ended_ms is not None else task.id,
    )  # fmt: skip
    public_id = note(work, source, report.anomaly)
    if public_id and task is not None:
        found = rules.checked(report.anomaly)
        times = f" ({found.count} times)" if found.count > 1 else ""
        task.job.tell(f"{found.kind} {public_id}: {found.summary}{times}", task=task.number, now_ms=work.now_ms)
        tasks.save(work.tx, task)
        work.effects.jobs.add(task.job.public_id)


# --- what operators do -----------------------------------------------------------------------------------------------


def find(tx: engine.Transaction, public_id: str) -> engine.Row:
    """The anomaly, or ``NOT_FOUND``."""
    row = anomalies.find(tx, public_id)
    if row is None:
        raise errors.NOT_FOUND(what="anomaly", name=public_id[:64])
    return row


async def act(control: plane.Plane, public_id: str, verb: str, *, text: str, actor: str) -> None:
    """``acknowledge``, ``answer`` (``text`` is the answer), ``close`` or ``reopen``.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``STATE_CONFLICT``.

    """

    def operation(work: changes.Work) -> None:
        row = find(work.tx, public_id)
        before = rules.State(row["state"])
        after = rules.after(before, verb)
        if after is None:
            raise errors.STATE_CONFLICT(
                what=f"Anomaly {public_id}", state=before.value, expected=f"a state that allows to {verb} it"
            )
        anomalies.set_state(
            work.tx, row["id"], after, actor=actor, reason="" if verb == "answer" else text, now_ms=work.now_ms
        )
        if verb == "answer":
            anomalies.set_answer(work.tx, row["id"], text, actor=actor, now_ms=work.now_ms)
            work.effects.answers += anomalies.give_answer(work.tx, row["id"])
        audit.append(
            work.tx, actor=actor, action=f"anomaly.{verb}", subject=public_id, detail={"text": text},
            now_ms=work.now_ms,
        )  # fmt: skip
        work.effects.is_anomaly_changed = True

    await control.write(operation)


# --- what operators see ----------------------------------------------------------------------------------------------


def summary(row: engine.Row) -> api.AnomalySummary:
    """A row as the operator API has it."""
    entry = errors.CATALOGUE.get(row["code"])
    return api.AnomalySummary(
        id=row["public_id"], organization=row["organization"], kind=row["kind"], code=row["code"],
        summary=row["summary"], state=row["state"], count=row["count"], agents=row["agents"],
        reopened=row["reopened"], first_ms=row["first_ms"], last_ms=row["last_ms"], changed_ms=row["changed_ms"],
        changed_by=row["changed_by"], reason=row["reason"], answer=row["answer"], answered_by=row["answered_by"],
        answered_ms=row["answered_ms"], revision=row["revision"], cause="" if entry is None else entry.cause,
        remedy="" if entry is None else entry.remedy,
    )  # fmt: skip


def view(control: plane.Plane, public_id: str) -> api.AnomalyView:
    """An anomaly with its newest reports, or ``NOT_FOUND``."""

    def read(tx: engine.Transaction) -> api.AnomalyView:
        row = find(tx, public_id)
        reports = [
            api.AnomalyReport(
                agent_id=one["agent"], agent="" if one["agent"] is None else f"{one['hostname']}/{one['instance']}",
                task_id=one["task_id"], release=one["release"], summary=one["summary"], count=one["count"],
                first_ms=one["first_ms"], at_ms=one["at_ms"], received_ms=one["received_ms"],
                evidence=msgspec.json.decode(one["evidence"], type=dict[str, str]),
            )
            for one in anomalies.reports(tx, row["id"])
        ]  # fmt: skip
        return api.AnomalyView(anomaly=summary(row), reports=reports)

    return control.store.read(read)


class Removal:
    """The duty that forgets what was closed long ago."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        #: Boot time of the next removal.
        self.due = control.clock.boot()

    async def remove_if_due(self) -> None:
        """Remove what is too old, or too much."""
        now = self._control.clock.boot()
        if now < self.due:
            return
        self.due = now + _REMOVE_SECONDS
        before_ms = self._control.clock.wall_ms() - KEEP_SECONDS * 1000

        def operation(tx: engine.Transaction) -> int:
            return anomalies.remove_closed(tx, before_ms=before_ms, most=MAX_CLOSED, limit=_CHUNK)

        while await self._control.store.write(operation) == _CHUNK:
            pass
        await self._control.store.write(anomalies.forget_ended_tasks)

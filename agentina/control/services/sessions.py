"""Sessions and heartbeats: who speaks for an agent, what it holds, and which of it goes on (protocol.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.services import activation, changes, clones, licenses, outcomes, releases
from agentina.control.store import agents, audit, engine, tasks
from agentina.protocol import names, signing, wire
from agentina.protocol.states import FINAL, Reason, State


def check(agent: fleet.Agent, session: int) -> None:
    """Raise ``SESSION_SUPERSEDED`` unless ``session`` is the agent's current one."""
    if session != agent.session:
        raise errors.SESSION_SUPERSEDED(session=session, current=agent.session)


def check_standing(tx: engine.Transaction, agent: fleet.Agent, session: int) -> str:
    """The same from the database, for operations that must not act for a session that ends in the same moment.

    The agent's state (``active``, ...) is returned. Raises ``AGENT_UNKNOWN`` when it was removed.
    """
    standing = agents.standing(tx, agent.id)
    if standing is None:
        raise errors.AGENT_UNKNOWN()  # noqa: RSE102 - calling the entry makes the exception
    if standing[0] != session:
        raise errors.SESSION_SUPERSEDED(session=session, current=standing[0])
    return standing[1]


def directives(control: plane.Plane, agent: fleet.Agent, *, renew: bool = False) -> wire.Directives:
    """What is wanted of the agent now."""
    version, title = releases.offer(
        control, channel=agent.channel, machine=str(agent.facts.get("architecture", "")), version=agent.version
    )
    return wire.Directives(
        drain=agent.state == "draining",
        quarantine=(agent.state_reason or "no reason given") if agent.state == "quarantined" else "",
        heartbeat_seconds=control.settings.heartbeat_seconds,
        lease_seconds=control.settings.lease_seconds,
        license=licenses.renew_if_due(control, agent) if renew else None,
        update_available=version,
        update_title=title,
        answers=agent.newest_answer,
        update=agent.update_order,
        configuration=_configuration(control, agent),
    )


def _configuration(control: plane.Plane, agent: fleet.Agent) -> signing.Signed | None:
    """The order for settings; signed once, though each answer carries it."""
    configured, order = agent.configured, agent.configured.order
    if order is None:
        return None
    last = configured.signed
    if last is None or last[0] is not order:
        last = configured.signed = order, control.identity.signing_key.sign_struct("configuration", order)
    return last[1]


@dataclasses.dataclass(slots=True)
class _Unheld:
    """What to say about tasks a host lists that it does not hold in the control plane's eyes."""

    control: plane.Plane
    agent: fleet.Agent
    stop: list[wire.StopTask] = dataclasses.field(default_factory=list)
    forget: list[str] = dataclasses.field(default_factory=list)

    def judge(self, tx: engine.Transaction, listed: Iterable[wire.Held]) -> None:
        """Decide about listed tasks that are final here, another agent's, or unknown."""
        for held in listed:
            task = tasks.find(tx, *ids.split_task_id(held.task_id)) if names.is_task_id(held.task_id) else None
            if task is None or task.agent_id != self.agent.id:
                self._judge_unknown(held)
            elif held.state in FINAL:
                if is_complete(self.control, task):
                    self.forget.append(held.task_id)
            elif not task.host_ended and task.state in FINAL:
                self.stop.append(wire.StopTask(task_id=held.task_id, reason=task.reason, detail=task.detail))

    def _judge_unknown(self, held: wire.Held) -> None:
        if held.state in FINAL:
            self.forget.append(held.task_id)
        else:
            detail = "the control plane does not know it as this agent's"
            self.stop.append(wire.StopTask(task_id=held.task_id, reason=Reason.RECORD_DAMAGED, detail=detail))


async def open_session(control: plane.Plane, agent: fleet.Agent, message: wire.SessionOpen) -> wire.SessionOpened:
    """A daemon takes over; everything it holds and does not hold is concluded in one transaction."""
    activation.check_protocol(message.protocol)
    listed = {held.task_id: held for held in message.tasks}

    def conclude(work: changes.Work) -> tuple[engine.Row, int, _Unheld, str, set[str]]:
        tx = work.tx
        if agents.standing(tx, agent.id) is None:
            raise errors.AGENT_UNKNOWN()  # noqa: RSE102 - calling the entry makes the exception
        former = _judge_machine(work, agent, message)
        agents.open_session(tx, agent.id, _facts(message), now_ms=work.now_ms)
        kept = _conclude_held(work, agent, listed)
        # Already here, though the commit may fail: a sweep of leases in the same transaction must see them renewed.
        renew(control, agent, kept)
        unheld = _Unheld(control, agent)
        unheld.judge(tx, (held for task_id, held in listed.items() if task_id not in kept))
        return agents.by_id(tx, agent.id), agents.applied(tx, agent.id, message.stream), unheld, former, kept

    row, applied, unheld, former, kept = await control.write(conclude)
    if former not in {"", message.boot_id, *agent.former_boots}:
        agent.former_boots.append(former)
    plane.refresh_agent(agent, row)
    control.fleet.classify(agent)
    agent.heartbeat_ms, agent.last_seen = control.clock.wall_ms(), control.clock.boot()
    agent.poll = 0
    # A poll of the session before is answered now; it finds that it was superseded.
    agent.wake()
    stops = list(unheld.stop)
    for held in agent.held.values():
        held.is_taken, held.spec, held.is_missing = True, None, held.task_id not in kept
        if held.stop is not None:
            stops.append(held.stop)
    return wire.SessionOpened(
        session=agent.session, server_time_ms=control.clock.wall_ms(), applied=applied, stop=stops,
        forget=unheld.forget, directives=directives(control, agent, renew=True), organization=agent.organization,
        role=agent.role, labels=agent.labels,
    )  # fmt: skip


def _judge_machine(work: changes.Work, agent: fleet.Agent, message: wire.SessionOpen) -> str:
    """Quarantine the agent when it looks like a clone's; the boot id of the session before is returned."""
    boot_id, fingerprint = agents.last_machine(work.tx, agent.id)
    reason = clones.suspicion(
        known=msgspec.json.decode(fingerprint, type=wire.Fingerprint), seen=message.fingerprint,
        boot_id=message.boot_id, former_boots=agent.former_boots,
    )  # fmt: skip
    standing = agents.standing(work.tx, agent.id)
    if reason and standing is not None and standing[1] != "quarantined":
        agents.set_state(work.tx, agent.id, "quarantined", reason)
        detail = {"reason": reason, "hostname": message.hostname}
        audit.append(
            work.tx, actor="control-plane", action="agent.quarantine", subject=agent.public_id, detail=detail,
            now_ms=work.now_ms,
        )  # fmt: skip
    return boot_id


def renew(control: plane.Plane, agent: fleet.Agent, kept: set[str]) -> None:
    """Give the leases of tasks a new term."""
    deadline = control.clock.boot() + control.settings.lease_seconds
    for task_id in kept:
        held = agent.held.get(task_id)
        if held is not None:
            held.deadline = deadline


def heartbeat(control: plane.Plane, agent: fleet.Agent, message: wire.Heartbeat) -> wire.HeartbeatAnswer:
    """Renew the leases of what is listed. Nothing is written; a duty keeps the facts now and then."""
    check(agent, message.session)
    now = control.clock.boot()
    agent.last_seen, agent.heartbeat_ms = now, control.clock.wall_ms()
    agent.host, agent.is_changed, agent.is_draining = message.host, True, message.draining
    agent.drain_reason = message.drain_reason
    agent.version = message.version or agent.version
    agent.update, agent.update_window, agent.host_pinned = message.update, message.update_window, message.update_pin
    agent.configured.version, agent.configured.report = message.configuration, message.configuration_report
    renewed: list[str] = []
    answers: list[wire.Answer] = []
    unheld_listed: list[wire.Held] = []
    for listed in message.tasks:
        held = agent.held.get(listed.task_id)
        # A lease that has run out is not renewed, even if nobody has swept it yet: the task may be given away.
        if held is not None and held.deadline > now:
            held.deadline = now + control.settings.lease_seconds
            held.is_taken, held.spec, held.run = True, None, listed.agent
            held.parked = listed.parked
            if listed.models and listed.models != held.models:
                held.models = control.usage_told[held.task] = listed.models
            renewed.append(listed.task_id)
            answers += [answer for answer in held.answers.values() if answer.number > listed.answered]
        elif held is None:
            unheld_listed.append(listed)
    unheld = _Unheld(control, agent)
    if unheld_listed:
        control.store.read(lambda tx: unheld.judge(tx, unheld_listed), snapshot=False)
    stops = [held.stop for held in agent.held.values() if held.stop is not None]
    return wire.HeartbeatAnswer(
        server_time_ms=agent.heartbeat_ms, renewed=renewed, stop=stops + unheld.stop, forget=unheld.forget,
        answers=answers, directives=directives(control, agent, renew=True),
    )  # fmt: skip


def is_complete(control: plane.Plane, task: tasks.Task) -> bool:
    """Whether the control plane has the end and all output of a task, so that the host may delete it."""
    if not task.host_ended or task.outcome is None:
        return False
    outcome = msgspec.json.decode(task.outcome, type=wire.Outcome)
    if not outcome.output_bytes:
        return True
    return control.blobs.output_size(task.public_id) >= outcome.output_bytes


def _conclude_held(work: changes.Work, agent: fleet.Agent, listed: dict[str, wire.Held]) -> set[str]:
    """Conclude what the control plane thinks the agent holds; the ids of what goes on are returned."""
    kept = set()
    for task in tasks.held_by(work.tx, agent.id):
        if task.public_id in listed:
            kept.add(task.public_id)
        elif task.state is State.ASSIGNED:
            outcomes.return_task(work, task, "its host never took it over")
        # Of others the host has no record any more, but it may still run there: until its lease ends, which holds there
        # without a daemon, it is given to nobody.
    return kept


def _facts(message: wire.SessionOpen) -> agents.SessionFacts:
    return agents.SessionFacts(
        boot_id=message.boot_id, version=message.version, executor=message.executor,
        guarantees=_json(_bounded(message.guarantees)), runners=_json(message.runners[:64] or ["command"]),
        facts=_json(_bounded(message.facts)), fingerprint=_json(message.fingerprint),
        max_concurrent_tasks=message.max_concurrent_tasks,
    )  # fmt: skip


def _bounded(facts: dict[str, str]) -> dict[str, str]:
    """Facts are for people: 64 of them, a thousand characters each, are plenty."""
    return {key[:64]: value[:1000] for key, value in list(facts.items())[:64]}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

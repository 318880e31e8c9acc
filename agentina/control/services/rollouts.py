"""Rollouts: what operators do with them, and what agents are told. The rules are in :mod:`agentina.control.rollouts`.

Whatever changes a rollout is stored first, with a check that nobody else changed it meanwhile; only then do heartbeats
and polls carry the orders that follow (:func:`give_orders`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, TypeVar

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.rollouts import model, rules, selection, spread
from agentina.control.services import administration, releases, rollout_members
from agentina.control.store import agents, audit, engine, rollouts
from agentina.protocol import api, settings, units, windows, wire
from agentina.updates import versions

T = TypeVar("T")

#: Standings of agents that have what is rolled out, and states in which all agents are to have it.
_HAVING: Final = frozenset({model.Standing.CURRENT, model.Standing.UPDATED, model.Standing.RETURNING})
_WANTING: Final = frozenset({model.State.RUNNING, model.State.PAUSED, model.State.COMPLETED})

#: Heartbeats after which an agent that was changed counts as silent.
_SILENT_HEARTBEATS: Final = 10

#: What an act needs a rollout to be.
_ACT_STATES: Final = {
    "pause": {model.State.RUNNING},
    "resume": {model.State.PAUSED},
    "abort": {model.State.RUNNING, model.State.PAUSED, model.State.COMPLETED},
}


# --- what is known ---------------------------------------------------------------------------------------------------


def fact(control: plane.Plane, agent: fleet.Agent, now: float, now_ms: int) -> model.Fact:
    """What is known of an agent now; ``now`` is the boot clock."""
    past = agent.ledger.past(now_ms)
    # Since the start of this process everybody may have been heard by the one before.
    quiet = now - max(agent.last_seen, control.started)
    return model.Fact(
        place=spread.Place(
            agent=agent.id, host=agent.hostname, zone=agent.labels.get("zone", ""), tasks=past.figures.ended
        ),
        name=agent.name,
        version=agent.version,
        is_online=control.fleet.is_online(agent, now),
        is_silent=quiet > _SILENT_HEARTBEATS * control.settings.heartbeat_seconds,
        is_leaving=agent.is_draining,
        is_quarantined=agent.state == "quarantined",
        heard_ms=agent.heartbeat_ms or 0,
        report=agent.update,
        pinned=agent.pinned,
        host_pinned=agent.host_pinned,
        window=agent.update_window,
        totals=agent.ledger.totals,
        past=past,
    )


async def facts(control: plane.Plane, plan: model.Plan, known: Iterable[model.Member]) -> dict[int, model.Fact]:
    """What is known of the members that were not removed. Others have their turn in between."""
    now, now_ms = control.clock.boot(), control.clock.wall_ms()
    found = {}
    for number, member in enumerate(known):
        if number % rollout_members.SLICE == 0:
            await asyncio.sleep(0)
        agent = control.fleet.agents.get(member.agent)
        if agent is None:
            continue
        known_now = fact(control, agent, now, now_ms)
        found[member.agent] = _settings_fact(agent, plan, member, known_now) if _is_settings(plan) else known_now
    return found


def _is_settings(plan: model.Plan) -> bool:
    return plan.kind == "configuration"


def _settings_fact(agent: fleet.Agent, plan: model.Plan, member: model.Member, known: model.Fact) -> model.Fact:
    """The same about settings. Where no heartbeat was heard since the start, they are as they were stored."""
    version = agent.configured.version
    if version is None:
        version = plan.version if member.standing in _HAVING else settings.NONE
    return msgspec.structs.replace(
        known, version=version, report=agent.configured.report, pinned="", host_pinned="",
        is_closed=agent.configured.version == "",
    )  # fmt: skip


def newcomers(
    control: plane.Plane, chosen: selection.Selection, plan: model.Plan, known: Mapping[int, model.Member]
) -> list[model.Member]:
    """Agents that match and have no part yet."""
    return [
        model.Member(agent=agent.id, since_ms=control.clock.wall_ms())
        for agent in control.fleet.agents.values()
        if agent.id not in known
        and chosen.matches(organization=agent.organization, role=agent.role, channel=agent.channel, labels=agent.labels)
        and (_is_settings(plan) or not selection.is_newer(agent.version, plan.version))
    ]


# --- what agents are told --------------------------------------------------------------------------------------------


def give_orders(
    control: plane.Plane, number: int, rollout: model.Rollout, changed: Iterable[model.Member]
) -> None:  # fmt: skip
    """Let heartbeats and polls carry what these members are told now. What they are told is stored before."""
    for member in changed:
        agent = control.fleet.agents.get(member.agent)
        if agent is None:
            continue
        if _is_settings(rollout.plan):
            is_changed = _give_settings(agent, number, rollout, member)
        else:
            is_changed = _give(agent.update_orders, number, model.order(rollout, member))
        if is_changed:
            agent.orders = True
            agent.wake()


def _give(orders: dict[int, T], number: int, order: T | None) -> bool:
    """Put an order, or None, in the place of a rollout's; whether that is another one."""
    if order == orders.get(number):
        return False
    if order is None:
        del orders[number]
    else:
        orders[number] = order
    return True


def _give_settings(agent: fleet.Agent, number: int, rollout: model.Rollout, member: model.Member) -> bool:
    plan, order = rollout.plan, model.order(rollout, member)
    if rollout.state in _WANTING and not rollout.superseded and not member.skipped:
        agent.configured.wanted = plan.version
    elif agent.configured.wanted == plan.version:
        agent.configured.wanted = ""
    if order is None:
        return _give(agent.configured.orders, number, None)
    is_applied = order.action == "upgrade"
    wanted = wire.ConfigurationOrder(
        id=order.id, agent_id=agent.public_id, version=plan.version, action="apply" if is_applied else "leave",
        settings=msgspec.to_builtins(plan.settings) if is_applied else {},
    )  # fmt: skip
    return _give(agent.configured.orders, number, wanted)


def load(control: plane.Plane) -> None:
    """Give the stored orders again, after a start."""
    for stored in control.store.read(rollouts.living):
        give_orders(control, stored.id, stored.rollout, _members(control, stored.id))


def _members(control: plane.Plane, number: int) -> list[model.Member]:
    return control.store.read(lambda tx: rollouts.members(tx, number))


async def follow_change(control: plane.Plane, number: int) -> None:
    """Give the orders of all members of the rollout in this row, as stored now, and wake whoever follows it.

    Others have their turn in between; what they change of the rollout is then followed from the beginning.
    """
    while not await _follow(control, number):
        pass


async def _follow(control: plane.Plane, number: int) -> bool:
    """False: it was changed meanwhile."""
    known = await control.members.read(_now(control, number))
    members = list(known.values())
    for start in range(0, max(len(members), 1), rollout_members.SLICE):
        stored = _now(control, number)
        if not control.members.is_current(stored):
            return False
        give_orders(control, number, stored.rollout, members[start : start + rollout_members.SLICE])
        await asyncio.sleep(0)
    control.bells.ring(bell(stored.rollout.public_id))
    return True


def _now(control: plane.Plane, number: int) -> rollouts.Stored:
    """The rollout in this row as it is stored now."""
    return control.store.read(lambda tx: rollouts.by_id(tx, number), snapshot=False)


async def call_back(control: plane.Plane, number: int) -> rollouts.Stored:
    """Tell everybody whom the rollout in this row changed to leave it, if it goes back and they were not told yet.

    Some at a time, each stored before they are told, and others have their turn in between. A control plane that is
    killed in the midst of it goes on here: the rollout's state is the decision, and is stored before. Returns the
    rollout as it is then.

    Raises:
        AgentinaError: The database cannot be written; the duty goes on later.

    """
    while (stored := _now(control, number)).rollout.state is model.State.ROLLING_BACK:
        known = await control.members.read(stored)
        stored = _now(control, number)
        if not control.members.is_current(stored):
            continue
        changed = list(rules.called_back(known.values(), now_ms=control.clock.wall_ms()))
        if not changed:
            break
        await _call_back(control, stored, known, changed)
    return stored


async def _call_back(
    control: plane.Plane, stored: rollouts.Stored, known: Mapping[int, model.Member], changed: list[model.Member]
) -> None:
    """Store and tell them, as long as nobody else changes the rollout."""
    for start in range(0, len(changed), rollout_members.SLICE):
        some = changed[start : start + rollout_members.SLICE]

        def operation(
            tx: engine.Transaction, stored: rollouts.Stored = stored, some: list[model.Member] = some
        ) -> bool:
            if not rollouts.save(tx, stored, stored.rollout):
                return False
            rollouts.save_members(tx, stored.id, some)
            return True

        if not await control.store.write(operation):
            return
        stored = dataclasses.replace(stored, revision=stored.revision + 1)
        known = {**known, **{member.agent: member for member in some}}
        control.members.note(stored.id, stored.revision, known)
        give_orders(control, stored.id, stored.rollout, some)
    control.bells.ring(bell(stored.rollout.public_id))


def bell(public_id: str) -> str:
    """The key of the bell for a rollout."""
    return f"rollout:{public_id}"


# --- what operators do -----------------------------------------------------------------------------------------------


async def start(control: plane.Plane, request: api.RolloutStart, *, actor: str) -> str:
    """Begin a rollout; its id is returned.

    Raises:
        AgentinaError: ``NAME_INVALID``, ``INPUT_INVALID``, ``RELEASE_UNKNOWN``, ``NOT_FOUND`` (an agent to skip),
            ``ROLLOUT_OVERLAPS``, ``ROLLOUT_EMPTY``.

    """
    plan, chosen = await _check(control, request)
    rollout = model.Rollout(public_id=ids.new_id("roll"), plan=plan)
    now_ms = control.clock.wall_ms()
    members = _first_members(control, request, plan, chosen)
    detail = {"version": plan.version, "select": chosen.words(), "agents": len(members)}

    def operation(tx: engine.Transaction) -> list[int]:
        replaced = _replace(tx, chosen, plan.kind)
        number = rollouts.insert(tx, rollout, chosen, actor=actor, now_ms=now_ms)
        rollouts.save_members(tx, number, members)
        text = f"started by {actor} for {chosen.words()}: {units.show_count(len(members), 'agent')}"
        rollouts.tell(tx, number, text, now_ms=now_ms)
        audit.append(tx, actor=actor, action="rollout.start", subject=rollout.public_id, detail=detail, now_ms=now_ms)
        return [*replaced, number]

    for changed in await control.store.write(operation):
        await follow_change(control, changed)
    return rollout.public_id


async def _check(control: plane.Plane, request: api.RolloutStart) -> tuple[model.Plan, selection.Selection]:
    if (request.settings is None) == (not request.version):
        raise errors.INPUT_INVALID(where="version", problem="expected either a release's version or settings")
    windows.parse(request.window)
    if request.settings is not None:
        return _plan(request, settings.version_of(request.settings)), selection.parse(request.select)
    version = versions.check(request.version)
    if version not in (control.published or ()):
        # It may have been published a moment ago. Whatever is wrong with the repository, the duty for it complains.
        with contextlib.suppress(errors.AgentinaError):
            await releases.look(control)
    if control.published is not None and version not in control.published:
        raise errors.RELEASE_UNKNOWN(what=f"release {version}", where="the control plane's repository")
    return _plan(request, version), selection.parse(request.select)


def _plan(request: api.RolloutStart, version: str) -> model.Plan:
    wanted = {name: getattr(request, name) for name in model.Plan.__struct_fields__ if hasattr(request, name)}
    if request.settings is None:
        del wanted["settings"]
    kind: Literal["release", "configuration"] = "release" if request.settings is None else "configuration"
    return model.Plan(**{**wanted, "version": version, "kind": kind})


def _first_members(
    control: plane.Plane, request: api.RolloutStart, plan: model.Plan, chosen: selection.Selection
) -> list[model.Member]:
    skipped = {administration.find_agent(control, agent).id for agent in request.skip}
    now, now_ms = control.clock.boot(), control.clock.wall_ms()
    members = []
    for member in newcomers(control, chosen, plan, {}):
        agent = control.fleet.agents[member.agent]
        is_compared = control.fleet.is_online(agent, now)
        members.append(
            msgspec.structs.replace(
                member, skipped=agent.id in skipped, mark=agent.ledger.totals if is_compared else None,
                mark_ms=now_ms if is_compared else 0,
            )
        )  # fmt: skip
    if not members:
        raise errors.ROLLOUT_EMPTY(version=plan.version, select=chosen.words())
    return members


def _replace(tx: engine.Transaction, chosen: selection.Selection, kind: str) -> list[int]:
    """Take agents over from rollouts that have ended, which are returned.

    Raises:
        AgentinaError: ``ROLLOUT_OVERLAPS``: one has not.

    """
    replaced = []
    for stored in rollouts.living(tx):
        if not stored.selection.overlaps(chosen):
            continue
        if stored.rollout.state in model.ACTIVE:
            raise errors.ROLLOUT_OVERLAPS(
                rollout=stored.rollout.public_id, state=stored.rollout.state.value, select=stored.selection.words()
            )
        if stored.rollout.plan.kind != kind:
            continue  # a release and settings live side by side
        after = msgspec.structs.replace(stored.rollout, superseded=True)
        rollouts.save(tx, stored, after)
        replaced.append(stored.id)
    return replaced


def find(tx: engine.Transaction, public_id: str) -> rollouts.Stored:
    """The rollout, or ``NOT_FOUND``."""
    stored = rollouts.find(tx, public_id)
    if stored is None:
        raise errors.NOT_FOUND(what="rollout", name=public_id[:64])
    return stored


async def act(control: plane.Plane, public_id: str, verb: str, *, reason: str, actor: str) -> None:
    """Pause, resume or abort.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``STATE_CONFLICT``.

    """
    now_ms = control.clock.wall_ms()
    why = f": {reason}" if reason else ""

    def change(tx: engine.Transaction, stored: rollouts.Stored) -> model.Rollout:
        rollout, expected = stored.rollout, _ACT_STATES[verb]
        if rollout.state not in expected or rollout.superseded:
            raise errors.STATE_CONFLICT(
                what=f"Rollout {public_id}", state="replaced by another" if rollout.superseded else rollout.state.value,
                expected=" or ".join(sorted(state.value for state in expected)),
            )  # fmt: skip
        rollouts.tell(tx, stored.id, f"{_PAST[verb]} by {actor}{why}", now_ms=now_ms)
        audit.append(
            tx, actor=actor, action=f"rollout.{verb}", subject=public_id, detail={"reason": reason}, now_ms=now_ms
        )
        if verb == "abort":
            return rules.halt(rollout, reason=f"aborted by {actor}{why}")
        state = model.State.PAUSED if verb == "pause" else model.State.RUNNING
        return msgspec.structs.replace(rollout, state=state, reason=reason if verb == "pause" else "")

    number = await _change(control, public_id, change)
    if verb == "abort":
        await call_back(control, number)


_PAST: Final = {"pause": "paused", "resume": "resumed", "abort": "aborted"}


async def skip(control: plane.Plane, public_id: str, agent_id: str, *, actor: str) -> None:
    """Leave an agent out that has not got the release yet.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``STATE_CONFLICT``.

    """
    agent = administration.find_agent(control, agent_id)
    now_ms = control.clock.wall_ms()

    def change(tx: engine.Transaction, stored: rollouts.Stored) -> model.Rollout:
        found = next(iter(rollouts.some_members(tx, stored.id, agent.id - 1, 1)), None)
        if found is None or found.agent != agent.id:
            raise errors.NOT_FOUND(what=f"agent of rollout {public_id}", name=agent_id[:64])
        if found.standing not in {model.Standing.PENDING, model.Standing.ORDERED, model.Standing.SILENT}:
            raise errors.STATE_CONFLICT(
                what=f"Agent {agent_id}", state=found.standing.value, expected="pending, ordered or silent"
            )
        left_out = msgspec.structs.replace(
            found, standing=model.Standing.PENDING, stage=0, skipped=True, since_ms=now_ms, reason=f"by {actor}"
        )
        rollouts.save_members(tx, stored.id, [left_out])
        rollouts.tell(tx, stored.id, f"{agent.name} left out by {actor}", now_ms=now_ms)
        audit.append(
            tx, actor=actor, action="rollout.skip", subject=public_id, detail={"agent": agent_id}, now_ms=now_ms
        )
        return stored.rollout

    await _change(control, public_id, change)


async def _change(
    control: plane.Plane, public_id: str, change: Callable[[engine.Transaction, rollouts.Stored], model.Rollout]
) -> int:
    """Store what an operator changes, and let agents know; the rollout's row id."""

    def operation(tx: engine.Transaction) -> int:
        stored = find(tx, public_id)
        after = change(tx, stored)
        assert rollouts.save(tx, stored, after), "read in the same transaction"
        return stored.id

    number = await control.store.write(operation)
    await follow_change(control, number)
    return number


async def pin(control: plane.Plane, agent_id: str, version: str, *, actor: str) -> fleet.Agent:
    """Hold an agent to a version, whatever rollouts want; empty: to none.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``NAME_INVALID``.

    """
    agent = administration.find_agent(control, agent_id)
    if version:
        versions.check(version)
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> None:
        agents.set_pin(tx, agent.id, version)
        audit.append(tx, actor=actor, action="agent.pin", subject=agent_id, detail={"version": version}, now_ms=now_ms)

    await control.store.write(operation)
    agent.pinned = version
    return agent

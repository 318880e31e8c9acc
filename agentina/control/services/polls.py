"""The long poll: hand out work and orders, again until acknowledged, and hold the request while there is nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, plane
from agentina.control.services import changes, checkpoints, claims, sessions
from agentina.control.store import engine, jobs, tasks
from agentina.protocol import signing, wire

#: What a held request does when its connection breaks: the callback it registers is called.
OnLost = Callable[[Callable[[], None]], None]

#: Who polls is not the agent's daemon any more, or the agent is none.
_REPLACED: Final = frozenset({errors.SESSION_SUPERSEDED.code, errors.AGENT_UNKNOWN.code})


class _Assignment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """:class:`wire.Assignment` with the specification as stored: it is signed without being decoded."""

    task_id: str
    job_id: str
    epoch: int
    agent_id: str
    session: int
    poll: int
    organization: str
    issued_ms: int
    lease_seconds: float
    job: msgspec.Raw
    origin: wire.Origin | None = None


async def poll(control: plane.Plane, agent: fleet.Agent, message: wire.Poll, on_lost: OnLost) -> wire.PollAnswer:
    """Answer with work or orders, or with nothing when the time is over."""
    sessions.check(agent, message.session)
    agent.last_seen = control.clock.boot()
    if message.number < agent.poll:
        # A copy of an earlier request that was under way for long; the present one must not suffer from it.
        return wire.PollAnswer(number=message.number, server_time_ms=control.clock.wall_ms())
    agent.poll, agent.poll_slots, agent.poll_memory = message.number, message.slots, message.memory_bytes
    control.fleet.note_gateway(agent, message.gateway)
    heard = _acknowledge(agent, message.acknowledged)
    # One poll at a time: an older one still held gets its (empty) answer.
    agent.wake()
    if heard:
        await _forget_wishes(control, heard)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + message.wait_seconds
    is_woken = False
    while True:
        await _take(control, agent, message, is_woken=is_woken)
        answer = _collect(control, agent, message)
        if answer is not None:
            return answer
        remaining = deadline - loop.time()
        is_woken = remaining > 0 and await _wait(control, agent, remaining, on_lost)
        if not is_woken:
            return _empty(control, agent, message)


def _may_take(control: plane.Plane, agent: fleet.Agent, message: wire.Poll) -> bool:
    """Whether the poll may be given tasks now."""
    return (
        agent.poll == message.number
        and claims.takes_work(agent)
        and control.fleet.find(agent.public_id) is agent
    )  # fmt: skip


async def _take(control: plane.Plane, agent: fleet.Agent, message: wire.Poll, *, is_woken: bool) -> None:
    """Claim what there is. What the poll may have been woken for, and may not take any more, is for somebody else."""
    try:
        # Looked at again after a claim that came too late: a job that arrived meanwhile has woken nobody else.
        while _may_take(control, agent, message) and control.has_work(agent):
            if await _claim(control, agent, message):
                return
    except errors.AgentinaError as error:
        if is_woken and error.code in _REPLACED:
            control.pass_on_work(agent)
        raise
    if is_woken and not _may_take(control, agent, message):
        control.pass_on_work(agent)


def _acknowledge(agent: fleet.Agent, number: int) -> list[fleet.Held]:
    """The agent has all answers up to ``number``; the tasks are returned of which it has heard that one is wanted."""
    heard = []
    for held in agent.held.values():
        if held.poll <= number:
            held.is_taken, held.spec = True, None
        if held.checkpoint_poll and held.checkpoint_poll <= number:
            held.checkpoint_poll = None
            heard.append(held)
    return heard


async def _forget_wishes(control: plane.Plane, heard: list[fleet.Held]) -> None:
    def operation(tx: engine.Transaction) -> None:
        for held in heard:
            # Somebody may have wished again since.
            if held.checkpoint_poll is None:
                tasks.forget_wish(tx, held.task)

    # One that is not forgotten is said again after a restart, and does no harm.
    with contextlib.suppress(errors.AgentinaError):
        await control.store.write(operation)


async def _wait(control: plane.Plane, agent: fleet.Agent, seconds: float, on_lost: OnLost) -> bool:
    """Hold the request; False: its time is over or nobody listens any more."""
    control.check_running()
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    is_over = False

    def give_up() -> None:
        nonlocal is_over
        is_over = True
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(seconds, give_up)
    on_lost(give_up)
    agent.waiter = waiter
    waits_for_work = claims.takes_work(agent)
    if waits_for_work:
        control.fleet.wait_for_work(agent)
    try:
        await waiter
    finally:
        timer.cancel()
        if agent.waiter is waiter:
            agent.waiter = None
            was_woken = not control.fleet.leave_queue(agent)
            if is_over and waits_for_work and was_woken and not control.is_stopping:
                # Woken for a job and, before it could look, out of time or cut off: somebody else must look.
                control.pass_on_work(agent)
    return not is_over


# --- answers -----------------------------------------------------------------------------------------------------


def _collect(control: plane.Plane, agent: fleet.Agent, message: wire.Poll) -> wire.PollAnswer | None:
    """Everything the host has not acknowledged yet; None: there is nothing."""
    control.check_running()
    if control.fleet.find(agent.public_id) is None:
        raise errors.AGENT_UNKNOWN()  # noqa: RSE102 - calling the entry makes the exception
    sessions.check(agent, message.session)
    if agent.poll != message.number:
        # A newer poll came meanwhile; whatever was claimed for this one is delivered there.
        agent.wake()
        return _empty(control, agent, message)
    now = control.clock.boot()
    # A lease that has run out may be about to be given up: such a task is not sent again.
    unsent = [held for held in agent.held.values() if not held.is_taken and held.deadline > now]
    stops = [
        held for held in agent.held.values()
        if held.stop is not None and (held.stop_poll == 0 or held.stop_poll > message.acknowledged)
    ]  # fmt: skip
    wanted = [held for held in agent.held.values() if held.checkpoint_poll is not None]
    if not (unsent or stops or wanted or agent.orders):
        return None
    agent.orders = False
    for held in stops:
        held.stop_poll = message.number
    for held in wanted:
        held.checkpoint_poll = message.number
    return wire.PollAnswer(
        number=message.number, server_time_ms=control.clock.wall_ms(),
        assignments=[_sign(control, agent, held, message.number) for held in unsent[: wire.MAX_ASSIGNMENTS]],
        stop=[held.stop for held in stops if held.stop is not None],
        checkpoint=[held.task_id for held in wanted],
        directives=sessions.directives(control, agent),
    )  # fmt: skip


def _empty(control: plane.Plane, agent: fleet.Agent, message: wire.Poll) -> wire.PollAnswer:
    return wire.PollAnswer(
        number=message.number, server_time_ms=control.clock.wall_ms(), directives=sessions.directives(control, agent)
    )


def _sign(control: plane.Plane, agent: fleet.Agent, held: fleet.Held, number: int) -> signing.Signed:
    spec = held.spec
    if spec is None:
        held.spec = spec = control.store.read(lambda tx: jobs.spec(tx, held.job), snapshot=False)
    held.poll = number
    # The host counts the lease from before it sent this poll; the control plane begins a new term now.
    held.deadline = control.clock.boot() + control.settings.lease_seconds
    epoch = int(held.task_id.rpartition(".")[2])
    origin = None if epoch == 1 else control.store.read(
        lambda tx: checkpoints.origin(tx, held.job, held.job_id, epoch), snapshot=False
    )  # fmt: skip
    content = _Assignment(
        task_id=held.task_id, job_id=held.job_id, epoch=epoch, origin=origin,
        agent_id=agent.public_id, session=agent.session, poll=number, organization=agent.organization,
        issued_ms=control.clock.wall_ms(), lease_seconds=control.settings.lease_seconds,
        job=msgspec.Raw(spec.encode()),
    )  # fmt: skip
    return control.sign("assignment", msgspec.json.encode(content))


async def _claim(control: plane.Plane, agent: fleet.Agent, message: wire.Poll) -> bool:
    """Turn waiting jobs into tasks of this agent; whether there were any."""

    def claim(work: changes.Work) -> list[claims.Claimed]:
        if sessions.check_standing(work.tx, agent, message.session) != "active" or agent.poll != message.number:
            return []
        return claims.take(work, agent)

    claimed = await control.write(claim, committed=lambda taken: claims.hold(control, agent, taken))
    return bool(claimed)

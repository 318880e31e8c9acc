"""The day turns (UTC, by the control plane's clock) while calls are held for a budget of the day."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.gateway import channel
from agentina.protocol import budgets as protocol
from agentina.protocol import jobs
from agentina.system import tasks
from tests.fakes import deadlines
from tests.integration.gateway import gates

#: Less than a call may take.
_LITTLE: Final = protocol.Bounds(tokens=50)
_MUCH: Final = protocol.Bounds(tokens=50_000)


@pytest.fixture
async def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[gates.Gate]:
    monkeypatch.setattr("agentina.gateway.models.PING_SECONDS", 0.05)
    async with gates.opened(tmp_path) as made:
        yield made


def share(cap: protocol.Bounds, *, left: protocol.Bounds, policy: protocol.OnExhausted = "park") -> protocol.Share:
    return protocol.Share(limit=_MUCH, cap=cap, left=left, on_exhausted=policy)


@contextlib.asynccontextmanager
async def held(gate: gates.Gate) -> AsyncIterator[asyncio.Task[Any]]:
    """A call that is held because a budget of the day is used up."""
    asking = tasks.start(gate.message(), name="call", on_failure=lambda _: None)
    await gate.wait_until_refused()
    assert gate.account.is_parked
    try:
        yield asking
    finally:
        await tasks.cancel(asking)


async def looked_again(gate: gates.Gate) -> None:
    """Return when the held call has looked at the budgets again, with all that was done before."""
    looked = asyncio.Event()
    ask = gate.account.ask

    def note(*arguments: Any) -> Any:
        decision = ask(*arguments)
        asyncio.get_running_loop().call_soon(looked.set)
        return decision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate.account, "ask", note)
        async with asyncio.timeout(deadlines.HANG):
            await looked.wait()


async def finished(asking: asyncio.Task[Any]) -> bytes:
    async with asyncio.timeout(deadlines.HANG):
        status, _, body = await asking
    assert status == 200
    return bytes(body)


async def test_a_call_held_for_its_agent_s_budget_goes_on_by_itself(gate: gates.Gate) -> None:
    """Also of a host that is cut off: nobody else uses that budget. What was added for yesterday is over."""
    extra = protocol.Units(tokens=_MUCH.tokens or 0)
    gate.learn(agent=protocol.Whole(limit=_MUCH, extra=extra, on_exhausted="park"))
    gate.days.begin({gate.days.today: extra}, {})
    async with held(gate):
        gate.clock.ahead = gates.HOUR
        await looked_again(gate)
        assert gate.account.is_parked, "nothing is left of a budget that was for yesterday only"
    gate.clock.ahead = 0.0
    gate.learn(agent=protocol.Whole(limit=_MUCH, on_exhausted="park"))
    async with held(gate) as asking:
        gate.clock.ahead = gates.HOUR
        assert (await finished(asking)).endswith(b'{"type": "message_stop"}\n\n')
    (used,) = gate.account._record.story.usage()
    assert used.day == gate.days.today, "of the new day"


@pytest.mark.parametrize("step", [-86_400_000, 86_400_000])
async def test_somebody_who_sets_the_clock_changes_no_budget(gate: gates.Gate, step: int) -> None:
    """Neither of the day nor of a task's duration."""
    gate.account.raise_to(jobs.Budget(duration=gates.HOUR, on_exhausted="stop"))
    gate.learn(agent=protocol.Whole(limit=_LITTLE, on_exhausted="park"))
    async with held(gate) as asking:
        gate.clock.stepped_ms = step
        await looked_again(gate)
        assert gate.account.is_parked
        gate.learn(agent=protocol.Whole(limit=_MUCH, on_exhausted="park"))
        await finished(asking)


async def test_a_call_held_for_long_waits_for_its_share_of_the_new_day(gate: gates.Gate) -> None:
    """It has been held for longer than calls wait for a share; that begins anew."""
    gate.learn(organization=share(_LITTLE, left=_LITTLE))
    async with held(gate) as asking:
        for ahead in (gates.HOUR - 1, gates.HOUR):
            gate.clock.ahead = ahead
            await looked_again(gate)
        assert gate.days.is_starved, "the share is asked for"
        # The control plane's clock is a moment behind: of another day it shares out nothing.
        gate.learn(organization=share(protocol.Bounds(tokens=0), left=_MUCH), day="2001-01-01")
        await looked_again(gate)
        assert not asking.done()
        gate.learn(organization=share(_MUCH, left=_MUCH))
        await finished(asking)
    assert [bool(word.reason) for word in gate.told.words if isinstance(word, channel.Parked)] == [True, False]


@pytest.mark.parametrize("policy", ["park", "stop"])
async def test_a_host_that_is_cut_off_uses_nothing_of_a_shared_budget_on_a_new_day(
    gate: gates.Gate, policy: protocol.OnExhausted
) -> None:
    """Calls wait for ten minutes; then they are held, and people are told what for, or refused."""
    unknown = "the control plane has not said yet what this host may use of the budgets of the day"
    gate.learn(organization=share(_MUCH, left=_MUCH, policy=policy))
    yesterday = gate.days.today
    gate.clock.ahead = gates.HOUR
    gate.learn(organization=share(_MUCH, left=_MUCH, policy=policy), day=yesterday, is_away=True)
    asking = tasks.start(gate.message(), name="call")
    await looked_again(gate)
    assert gate.refusals() == []
    gate.clock.ahead += 601
    await gate.wait_until_refused()
    assert gate.refusals() == [("BUDGET_EXHAUSTED", "waiting", "")]
    if policy == "stop":
        async with asyncio.timeout(deadlines.HANG):
            _, _, body = await asking
        assert unknown.encode() in body
        return
    await looked_again(gate)
    assert [word.reason for word in gate.told.words if isinstance(word, channel.Parked)] == [unknown]
    gate.learn(organization=share(_MUCH, left=_MUCH))
    await finished(asking)

"""Runs of agents that go in circles, or seem to stand still, on a real daemon with its gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentina.protocol.states import Reason, State
from tests.fakes import coding_model, control, real_clis
from tests.integration.gateway import beds

NOTE = "A note from agentina"
#: What takes a minute together.
LONG = pytest.mark.skipif("AGENTINA_TEST_LONG" not in os.environ, reason="set AGENTINA_TEST_LONG for what takes long")


class Circling(coding_model.CodingModel):
    """Has the same two commands run by turns, for ever, or until it is told of it."""

    def __init__(self) -> None:
        super().__init__("")

    def _call(self, tools: set[str], step: int) -> tuple[str, Any] | None:  # noqa: ARG002 - it never comes to an end
        if NOTE in self.asked[-1].body.decode():
            return None
        # Takes its time without words that tell of waiting.
        self.command = f"timeout 0.2 tail -f /dev/null; echo {'ab'[len(self.asked) % 2]}"
        return super()._call(tools, 0)


class Trickling(coding_model.CodingModel):
    """Takes long for an answer, and says now and then that it is still there."""

    SECONDS = 14

    async def _trouble(self, writer: asyncio.StreamWriter) -> bool:
        for _ in range(2 * self.SECONDS):
            await self._event(writer, {"type": "ping"})
            await asyncio.sleep(0.5)
        return True


@pytest.fixture
async def circling() -> AsyncIterator[beds.Bed]:
    async with beds.made(Circling(), prepare=beds.install_agents) as running:
        yield running


def submit(bed: beds.Bed, runner: str, act: str, **health: Any) -> control.Task:
    return bed.plane.submit(
        runner=runner, payload={"prompt": "Say hello.", "model": real_clis.CLIS[runner].model},
        budget={"tokens": 100_000_000}, resources={"memory": "3GiB"},
        health={"loop_after": 6, "stuck_after": 20, "act": act, **health},
    )  # fmt: skip


async def check_told(bed: beds.Bed, runner: str) -> None:
    """An agent in a circle is told, though it calls no tool of agentina's: the note goes with a call, and it ends."""
    task = submit(bed, runner, "nudge")
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.reason is Reason.AGENT_FINISHED, bytes(task.output)
    # What it may not reach is reported too.
    found, acted = [one for one in bed.plane.anomalies if one.code != "EGRESS_REFUSED"]
    assert (found.code, acted.code) == ("RUN_LOOPING", "RUN_LOOPING")
    assert "the same 2 calls in turn with the same results" in found.summary
    assert acted.evidence["done about it"] == "nudge: its model is told with its next call"
    told = [note for note in task.notes if note.startswith(f"its model was told: {NOTE}")]
    assert len(told) == 1
    # As much is counted as was billed, the note included.
    fresh, cached, output = bed.provider.billed
    (used,) = task.outcome.models
    assert (used.input, used.cached, used.output) == (fresh, cached, output)


@pytest.mark.parametrize("runner", ["claude-code", "codex"])
async def test_agent_that_goes_in_circles_is_told_by_its_model(circling: beds.Bed, runner: str) -> None:
    await check_told(circling, runner)


@pytest.fixture
async def real(request: pytest.FixtureRequest) -> AsyncIterator[tuple[beds.Bed, str]]:
    """A host with the real command line of a runner, and a model that goes in circles."""
    runner: str = request.param
    program = real_clis.obtain(real_clis.CLIS[runner])
    async with beds.made(Circling(), prepare=lambda root: beds.describe(root, runner, program)) as running:
        yield running, runner


@pytest.mark.slow
@pytest.mark.parametrize("real", ["claude-code", "codex", pytest.param("opencode", marks=LONG)], indirect=True)
async def test_real_agent_that_goes_in_circles_is_told_by_its_model(real: tuple[beds.Bed, str]) -> None:
    await check_told(*real)


@pytest.mark.slow
@LONG
@pytest.mark.parametrize("real", ["gemini"], indirect=True)
async def test_real_agent_that_sees_by_itself_that_it_goes_in_circles_has_failed(real: tuple[beds.Bed, str]) -> None:
    """It is faster than we are, and claims a success."""
    bed, runner = real
    task = submit(bed, runner, "nudge")
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.reason is Reason.AGENT_FAILED, bytes(task.output)
    assert "It said: loop: Loop detected" in task.outcome.detail


async def test_agent_that_goes_in_circles_is_stopped_with_what_it_did(circling: beds.Bed) -> None:
    task = submit(circling, "claude-code", "retry")
    await circling.plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason) == (State.FAILED, Reason.UNHEALTHY), bytes(task.output)
    assert [one.evidence.get("done about it") for one in circling.plane.anomalies] == [
        None, "retry: its task is ended",
    ]  # fmt: skip


async def test_context_that_is_nearly_full_is_seen_by_the_gateway(circling: beds.Bed) -> None:
    """Codex says nothing of it."""
    task = submit(circling, "codex", "report", loop_after=0, context_window=1000)
    await circling.plane.until(lambda: bool(circling.plane.anomalies))
    (found,) = circling.plane.anomalies
    circling.plane.cancel(task)
    await circling.plane.until_ended(task)
    assert found.code == "RUN_CONTEXT_FULL"
    assert "of 1,000 tokens of the context are filled" in found.summary
    assert task.outcome is not None
    assert task.outcome.agent is not None
    assert task.outcome.agent.context_window == 1000
    assert task.outcome.agent.context_tokens in {len(asked.body) // 4 for asked in circling.provider.asked}


@pytest.mark.slow
async def test_long_answer_of_a_model_is_no_standstill() -> None:
    """For longer than ``stuck_after`` nothing is written and no processor used; bytes pass the gateway."""
    async with beds.made(Trickling(""), prepare=beds.install_agents) as bed:
        health = {"stuck_after": 6, "act": "stop"}
        task = bed.plane.submit(runner="claude-code", payload={"prompt": "x"}, budget={}, health=health)
        await bed.plane.until_ended(task)
        assert task.outcome is not None
        assert task.outcome.reason is Reason.AGENT_FINISHED, bytes(task.output)
        assert not bed.plane.anomalies

"""What becomes of an agent's job when its provider is in trouble: the right end, words for people, and no storm."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina.gateway import record
from agentina.protocol.states import Reason, State
from tests.fakes import coding_model, control, procfs
from tests.integration.gateway import beds

#: The stand-in asks so often before it gives up.
TRIES = 10


@pytest.fixture
async def bed() -> AsyncIterator[beds.Bed]:
    async with beds.made(coding_model.CodingModel("echo hello"), prepare=beds.install_agents) as running:
        yield running


def submit(bed: beds.Bed, runner: str = "claude-code") -> control.Task:
    budget = {"tokens": 1_000_000}
    return bed.plane.submit(runner=runner, payload={"prompt": "Say hello."}, budget=budget)


def story(bed: beds.Bed, task: control.Task) -> record.Story:
    found = record.read(bed.root / "var/lib/agentina/default/tasks" / task.id)
    assert found is not None
    return found


#: Scenario: what the agent's error says, and how often the provider is asked at most, by an agent that repeats at once
#: what can be repeated. A limited provider is asked again when its pause is over, which doubles; a slow machine sees
#: more of those.
TROUBLES = {
    "400": ("no: 400", 1),
    "401": ("refuses the key this host has", 1),
    "429": ("too much to do (it answered 429)", 5),
    "429-after": ("too much to do (it answered 429)", 2),
    "500": ("failed 5 times in a row (it answered 500)", 7),
    "529": ("too much to do (it answered 529)", 5),
    "close": ("failed 5 times in a row (without an answer at last)", 7),
    "cut": ("no connection", TRIES),
}
#: The provider has had the whole request.
BREAKS = {"close", "cut"}


#: Much the same as others, and each takes a daemon of its own.
RARE = {"401", "429-after", "529"}


@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in TROUBLES]
)
async def test_the_job_ends_with_the_providers_words_and_the_provider_is_left_alone(
    bed: beds.Bed, scenario: str
) -> None:
    words, most = TROUBLES[scenario]
    bed.provider.scenario = scenario
    task = submit(bed)
    await bed.plane.until_ended(task)
    outcome = task.outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (State.FAILED, Reason.AGENT_FAILED), bytes(task.output)
    # What it said last, or the gateway in its place.
    assert words in outcome.detail or "and is left alone for another" in outcome.detail
    assert 1 <= len(bed.provider.asked) <= most
    # Nothing was billed; where it could have been, that counts by an estimate.
    assert bed.provider.billed == [0, 0, 0]
    assert [used.estimated for used in outcome.models] == ([len(bed.provider.asked)] if scenario in BREAKS else [])


@pytest.mark.parametrize("runner", ["claude-code", "codex"])
async def test_events_nobody_understands_do_no_harm(bed: beds.Bed, runner: str) -> None:
    bed.provider.scenario = "malformed"
    task = submit(bed, runner)
    await bed.plane.until_ended(task)
    outcome = task.outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), bytes(task.output)
    fresh, cached, used = bed.provider.billed
    assert [note for note in task.notes if f"{fresh + cached + used} tokens, {cached} of them cached" in note]


async def test_a_killed_agent_is_charged_for_what_it_had_begun(bed: beds.Bed) -> None:
    """Killed in the middle of the second answer: the first counts exactly, the second by an upper bound, once."""
    task = submit(bed)
    bed.provider.scenario = "text"
    bed.provider.held_from = 2
    await bed.provider.holding.wait()
    first = bed.provider.billed[:]
    os.kill(pid_of(bed.root / "claude"), signal.SIGKILL)
    await bed.plane.until_ended(task)
    bed.provider.go_on.set()
    outcome = task.outcome
    assert outcome is not None
    assert outcome.reason is Reason.KILLED_BY_SIGNAL
    # It has said which session it is in, and nothing of that is on the disk.
    assert outcome.error_code == "CHECKPOINT_FAILED"
    (used,) = outcome.models
    assert used.calls == 2
    assert used.input + used.cached > first[0] + first[1]


def pid_of(program: Path) -> int:
    """The process that runs a script."""
    for pid, command in procfs.command_lines().items():
        if os.fsencode(program) in command.split(b"\0")[:2]:
            return pid
    raise AssertionError(f"{program} does not run")

"""Why a queued job is not running: pure, a sentence for each obstacle, the nearest to a solution last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentina.control import fleet
from agentina.protocol import units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """What the job itself waits for."""

    #: Needed jobs that have not succeeded.
    needs: Sequence[str] = ()
    backoff_seconds: float = 0.0
    #: Jobs that change the same paths, in words; empty: none does.
    paths: str = ""
    memory_bytes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What matters of an agent."""

    organization_id: int
    role: str | None
    labels: Mapping[str, str]
    runners: Sequence[str]
    state: str
    is_online: bool
    held: int
    max_tasks: int
    #: What its newest poll offered.
    slots: int
    memory_bytes: int


_Keep = Callable[[Candidate], bool]
_Sentence = Callable[[int], str]


def explain(waits: Waits, wanted: fleet.JobClass, candidates: Iterable[Candidate]) -> list[str]:
    """The sentences; empty when an agent can take the job any moment."""
    if waits.needs:
        return [f"It waits for {units.show_count(len(waits.needs), 'job')} to succeed: {', '.join(waits.needs[:10])}."]
    if waits.backoff_seconds > 0:
        return [f"It waits {units.show_duration(waits.backoff_seconds)} before the next attempt."]
    if waits.paths:
        return [f"It waits for a job that changes the same paths: {waits.paths}."]
    remaining = [agent for agent in candidates if agent.organization_id == wanted.organization_id]
    if not remaining:
        return ["The organization has no agents; make one with `agentina token create` and `agentina install`."]
    for keep, sentence in _narrowing(waits, wanted):
        kept = [agent for agent in remaining if keep(agent)]
        if not kept:
            return [sentence(len(remaining))]
        remaining = kept
    return []


def _narrowing(waits: Waits, wanted: fleet.JobClass) -> list[tuple[_Keep, _Sentence]]:
    """Conditions in the order in which they are looked at, with what to say when nobody is left."""
    labels = ", ".join(f"{key}={value}" for key, value in wanted.labels.items())
    memory = units.show_size(waits.memory_bytes)
    return [
        (
            lambda agent: wanted.role in {"", agent.role},
            lambda count: f"None of {units.show_count(count, 'agent')} has the role {wanted.role!r}.",
        ),
        (
            lambda agent: wanted.labels.items() <= dict(agent.labels).items(),
            lambda count: f"None of {units.show_count(count, 'agent')} has all the labels {labels}.",
        ),
        (
            lambda agent: wanted.runner in agent.runners,
            lambda count: f"None of {units.show_count(count, 'agent')} has the runner {wanted.runner!r}.",
        ),
        (
            lambda agent: agent.is_online,
            lambda count: f"No suitable agent is online ({units.show_count(count, 'agent')}).",
        ),
        (
            lambda agent: agent.state == "active",
            lambda count: f"All suitable agents are draining or in quarantine ({units.show_count(count, 'agent')}).",
        ),
        (
            lambda agent: agent.held < agent.max_tasks,
            lambda count: f"All suitable agents are busy ({units.show_count(count, 'agent')}).",
        ),
        (
            lambda agent: agent.slots > 0,
            lambda count: (
                f"No suitable agent takes work at the moment ({units.show_count(count, 'agent')}); "
                "`agentina status` on the host says why."
            ),
        ),
        (
            lambda agent: waits.memory_bytes <= agent.memory_bytes,
            lambda count: (
                f"It needs {memory} of memory; none of {units.show_count(count, 'suitable agent')} offers that now."
            ),
        ),
    ]

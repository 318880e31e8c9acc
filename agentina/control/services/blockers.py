"""Why a queued job is not running: pure, a sentence for each obstacle, the nearest to a solution last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentina import errors
from agentina.control import fleet
from agentina.protocol import jobs, units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """What the job itself waits for."""

    #: Needed jobs that have not succeeded.
    needs: Sequence[str] = ()
    backoff_seconds: float = 0.0
    #: Jobs that change the same paths, in words; empty: none does.
    paths: str = ""
    memory_bytes: int = 0
    gateway: jobs.GatewayNeed = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What matters of an agent."""

    name: str
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
    #: Its host's; where that is unusable its host offers no AI agents.
    gateway: jobs.GatewayState = ""
    #: What is wrong with it, in the host's words.
    gateway_problem: str = ""


_Keep = Callable[[Candidate], bool]
_Sentence = Callable[[Sequence[Candidate]], str]


def explain(waits: Waits, wanted: fleet.JobClass, candidates: Iterable[Candidate]) -> list[str]:
    """The sentences; empty when an agent can take the job any moment."""
    if waits.needs:
        return [f"It waits for {units.show_count(len(waits.needs), 'job')} to succeed: {', '.join(waits.needs[:10])}."]
    if waits.backoff_seconds > 0:
        pause = f"It waits {units.show_duration(waits.backoff_seconds)} before the next attempt."
        # Where hosts give it back for that reason the pause tells nothing.
        return [pause, *_obstacles(waits, wanted, candidates)]
    if waits.paths:
        return [f"It waits for a job that changes the same paths: {waits.paths}."]
    return _obstacles(waits, wanted, candidates)


def _obstacles(waits: Waits, wanted: fleet.JobClass, candidates: Iterable[Candidate]) -> list[str]:
    """Why no agent can take it."""
    remaining = [agent for agent in candidates if agent.organization_id == wanted.organization_id]
    if not remaining:
        return ["The organization has no agents; make one with `agentina token create` and `agentina install`."]
    for keep, sentence in _narrowing(waits, wanted):
        kept = [agent for agent in remaining if keep(agent)]
        if not kept:
            return [sentence(remaining)]
        remaining = kept
    return []


def _narrowing(waits: Waits, wanted: fleet.JobClass) -> list[tuple[_Keep, _Sentence]]:
    """Conditions in the order in which they are looked at, with what to say when nobody is left."""
    labels = ", ".join(f"{key}={value}" for key, value in wanted.labels.items())
    memory = units.show_size(waits.memory_bytes)
    return [
        (
            lambda agent: wanted.role in {"", agent.role},
            lambda agents: f"None of {_count(agents)} has the role {wanted.role!r}.",
        ),
        (
            lambda agent: wanted.labels.items() <= dict(agent.labels).items(),
            lambda agents: f"None of {_count(agents)} has all the labels {labels}.",
        ),
        (
            lambda agent: wanted.runner in agent.runners,
            lambda agents: f"None of {_count(agents)} has the runner {wanted.runner!r}.{_withheld(wanted, agents)}",
        ),
        (
            lambda agent: fleet.serves(agent.gateway, waits.gateway),
            lambda agents: f"No suitable agent has a gateway for the job's budget or hosts. {_broken(agents)}",
        ),
        (
            lambda agent: agent.is_online,
            lambda agents: f"No suitable agent is online ({_count(agents)}).",
        ),
        (
            lambda agent: agent.state == "active",
            lambda agents: f"All suitable agents are draining or in quarantine ({_count(agents)}).",
        ),
        (
            lambda agent: agent.held < agent.max_tasks,
            lambda agents: f"All suitable agents are busy ({_count(agents)}).",
        ),
        (
            lambda agent: agent.slots > 0,
            lambda agents: (
                f"No suitable agent takes work at the moment ({_count(agents)}); "
                "`agentina status` on the host says why."
            ),
        ),
        (
            lambda agent: waits.memory_bytes <= agent.memory_bytes,
            lambda agents: f"It needs {memory} of memory; none of {_count(agents)} that could take it offers that now.",
        ),
    ]


def _count(agents: Sequence[Candidate]) -> str:
    return units.show_count(len(agents), "agent")


def _withheld(wanted: fleet.JobClass, agents: Sequence[Candidate]) -> str:
    """What to do about a runner that nobody has, and what a broken gateway has to do with it."""
    if wanted.runner == "command":
        return ""
    broken = [agent for agent in agents if agent.gateway == "unusable"]
    if not broken:
        return (
            " On a host `agentina runner install`, or a file in runners.d, brings one (docs/how-to/run-ai-agents.md)."
        )
    return f" No AI agents are offered without a gateway. {_broken(broken)}"


def _broken(agents: Sequence[Candidate]) -> str:
    """What is wrong with the first one's gateway, and what to do."""
    first = agents[0]
    others = f" (and {len(agents) - 1} more)" if len(agents) > 1 else ""
    unusable = errors.GATEWAY_UNUSABLE
    return f"On {first.name}{others}: {first.gateway_problem} ({unusable.code}). {unusable.remedy}"

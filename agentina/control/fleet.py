"""The agents and what they hold, in memory: leases, who waits for work, orders to deliver.

The database has what must survive; this is built from it at the start and changed only after a commit. Leases are on
the boot clock, so nobody setting the clock stretches or shortens one; after a start every live lease gets a full term
(protocol.md, leases).
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Iterator
from typing import Final

import msgspec

from agentina.control.rollouts import figures
from agentina.protocol import budgets, jobs, signing, wire
from agentina.protocol.states import State

#: An agent not heard of for this many heartbeats is offline.
HEARTBEATS_MISSED: Final = 3
#: Boots of an agent remembered to notice that one comes back.
MAX_FORMER_BOOTS: Final = 16


#: As the poll of an assignment that no answer has carried yet: no acknowledgement reaches it.
UNSENT: Final = 1 << 62


#: Answers to one task that are sent until its host has them, the newest.
MAX_ANSWERS: Final = 16


class Held:
    """A task an agent holds, with its lease."""

    __slots__ = (
        "agent", "answers", "checkpoint_poll", "checkpointed", "deadline", "is_missing", "is_taken", "job", "job_id",
        "memory_bytes", "models", "parked", "poll", "run", "spec", "state", "stop", "stop_poll", "task", "task_id",
    )  # fmt: skip

    def __init__(
        self, *, agent: Agent, task: int, task_id: str, job: int, job_id: str, memory_bytes: int,
        state: State, deadline: float, spec: str | None = None,
    ) -> None:  # fmt: skip
        self.agent = agent
        self.task = task
        self.task_id = task_id
        self.job = job
        self.job_id = job_id
        self.memory_bytes = memory_bytes
        #: The last poll whose answer carried the assignment; a poll may end between a claim and its commit.
        self.poll = UNSENT
        self.state = state
        #: Boot clock seconds at which it is given up.
        self.deadline = deadline
        #: The job's stored specification, until the host has taken the assignment over.
        self.spec = spec
        #: The host is known to have it: it is not sent again.
        self.is_taken = state is not State.ASSIGNED
        #: Its host has no record of it any more.
        self.is_missing = False
        self.stop: wire.StopTask | None = None
        #: How far an AI agent is, as of the last heartbeat.
        self.run: wire.AgentRun | None = None
        #: What it used of models, likewise.
        self.models: list[budgets.ModelUsage] = []
        #: What operators say to it, by the report that is answered: the newest, the last one last.
        self.answers: dict[str, wire.Answer] = {}
        #: Why its host holds it at a call of a model; empty: it does not.
        self.parked = ""
        #: The poll whose answer carried the stop; 0: none did yet.
        self.stop_poll = 0
        #: The same of the wish for a checkpoint; None: there is none.
        self.checkpoint_poll: int | None = None
        #: Boot clock seconds at which a checkpoint of it came in full last; None: none did since the start here.
        self.checkpointed: float | None = None


@dataclasses.dataclass(slots=True)
class Configured:
    """An agent's settings from the control plane."""

    #: Those that hold there, and what became of the latest order for others, as of the last heartbeat; None: none was
    #: heard since the control plane's start.
    version: str | None = None
    report: wire.UpdateReport | None = None
    #: What rollouts want, by the rollout's row id, and the version that the newest of them wants.
    orders: dict[int, wire.ConfigurationOrder] = dataclasses.field(default_factory=dict)
    wanted: str = ""
    #: The order that was signed last, with its envelope.
    signed: tuple[wire.ConfigurationOrder, signing.Signed] | None = None

    @property
    def order(self) -> wire.ConfigurationOrder | None:
        """What is wanted now: to leave settings comes before taking some."""
        return min(self.orders.values(), key=lambda order: order.action == "apply", default=None)

    @property
    def is_skewed(self) -> bool:
        """Whether others hold than are wanted."""
        return self.wanted not in {"", self.version}


class Agent:
    """An activated agent."""

    __slots__ = (
        "assertions",
        "channel",
        "classes",
        "configured",
        "created_ms",
        "drain_reason",
        "executor",
        "facts",
        "former_boots",
        "gateway",
        "guarantees",
        "heartbeat_ms",
        "held",
        "host",
        "host_pinned",
        "hostname",
        "id",
        "instance",
        "is_changed",
        "is_draining",
        "is_work_counted",
        "key",
        "labels",
        "last_seen",
        "ledger",
        "license_issued_ms",
        "license_repeats",
        "license_tasks",
        "max_agents",
        "max_concurrent_tasks",
        "offline_grace_hours",
        "orders",
        "organization",
        "organization_id",
        "pinned",
        "plan",
        "poll",
        "poll_memory",
        "poll_slots",
        "public_id",
        "role",
        "runners",
        "session",
        "state",
        "state_reason",
        "update",
        "update_orders",
        "update_window",
        "version",
        "waiter",
    )  # fmt: skip

    def __init__(self, agent_id: int, public_id: str, key: signing.PublicKey) -> None:
        self.id = agent_id
        self.public_id = public_id
        self.key = key
        self.organization_id = 0
        self.organization = ""
        self.plan = ""
        self.max_agents = 0
        #: The license's limit of tasks at once.
        self.license_tasks = 1
        self.channel = ""
        self.offline_grace_hours = 0.0
        self.license_issued_ms = 0
        #: Heartbeat answers that still carry the renewed license, in case one is lost.
        self.license_repeats = 0
        self.hostname = ""
        self.instance = ""
        self.role: str | None = None
        self.labels: dict[str, str] = {}
        self.runners: list[str] = []
        self.max_concurrent_tasks = 1
        self.state = "active"
        self.state_reason = ""
        self.session = 0
        self.version = ""
        self.executor = ""
        self.guarantees: dict[str, str] = {}
        self.facts: dict[str, str] = {}
        #: Boots whose sessions another boot took over, the newest last (services/clones.py).
        self.former_boots: collections.deque[str] = collections.deque(maxlen=MAX_FORMER_BOOTS)
        self.host: wire.HostFacts | None = None
        self.created_ms = 0
        self.heartbeat_ms: int | None = None
        #: Boot clock seconds of the last sign of life; -inf: none since the control plane's start.
        self.last_seen = float("-inf")
        #: Its host said with the last heartbeat that it takes no new work.
        self.is_draining = False
        #: Why, in the host's words.
        self.drain_reason = ""
        #: Heartbeat facts not yet in the database.
        self.is_changed = False
        #: What its tasks came to, and whether the database has yet to hear of it.
        self.ledger = figures.Ledger()
        self.is_work_counted = False
        #: How far its host is with the latest update, as of the last heartbeat.
        self.update: wire.UpdateReport | None = None
        #: What rollouts want of it, by the rollout's row id.
        self.update_orders: dict[int, wire.UpdateOrder] = {}
        self.configured = Configured()
        #: The only version an operator, and its host's owner, let it run; empty: any.
        self.pinned = ""
        self.host_pinned = ""
        #: When its host's owner lets rollouts change it.
        self.update_window = ""
        self.held: dict[str, Held] = {}
        #: Ids of the job classes it can serve.
        self.classes: set[int] = set()
        #: Digests of assertions found valid, with the wall time (ms) until which they are.
        self.assertions: dict[bytes, int] = {}
        # The newest poll, and what it has room for.
        self.poll = 0
        self.poll_slots = 0
        self.poll_memory = 0
        #: How its host's gateway is, as that poll says.
        self.gateway: jobs.GatewayState = ""
        #: Resolved to make the held poll look again.
        self.waiter: asyncio.Future[None] | None = None
        #: A directive changed: the held poll answers at once.
        self.orders = False

    @property
    def name(self) -> str:
        """Host and instance, for people."""
        return f"{self.hostname}/{self.instance}"

    @property
    def update_order(self) -> wire.UpdateOrder | None:
        """What is wanted of it now: to leave a version comes before taking one."""
        return min(self.update_orders.values(), key=lambda order: order.action == "upgrade", default=None)

    @property
    def newest_answer(self) -> int:
        """The highest number of an answer to a task of it."""
        return max((answer.number for held in self.held.values() for answer in held.answers.values()), default=0)

    def wake(self) -> None:
        """Make the held poll, if any, look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class JobClass(msgspec.Struct, frozen=True, kw_only=True):
    """What makes jobs equal for scheduling."""

    id: int
    organization_id: int
    #: Empty: any role.
    role: str
    labels: dict[str, str]
    runner: str
    gateway: jobs.GatewayNeed = ""

    def is_served_by(self, agent: Agent) -> bool:
        """Whether the agent can run jobs of this class."""
        return (
            self.organization_id == agent.organization_id
            and self.role in {"", agent.role}
            and self.runner in agent.runners
            and self.labels.items() <= agent.labels.items()
            and serves(agent.gateway, self.gateway)
        )


def serves(gateway: jobs.GatewayState, need: jobs.GatewayNeed) -> bool:
    """Whether a host with such a gateway can run jobs that need one for that."""
    # Hosts in a scope are held where there is a gateway to hold them; elsewhere such a job runs as any other.
    return need == "" or gateway == "" or (gateway, need) == ("none", "hosts")


class Fleet:
    """All agents."""

    def __init__(self, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self.heartbeat_seconds = heartbeat_seconds
        self.agents: dict[int, Agent] = {}
        self.held: dict[str, Held] = {}
        self.classes: dict[int, JobClass] = {}
        #: Ids of the classes of which jobs may be ready: each job that becomes so is announced, and who looks and finds
        #: none takes the class away. Of the others none is.
        self.maybe_ready: set[int] = set()
        self._by_public_id: dict[str, Agent] = {}
        self._by_assertion: dict[bytes, Agent] = {}
        #: Agents whose poll waits for work, the longest waiting first.
        self._waiting: dict[int, Agent] = {}

    # --- agents ------------------------------------------------------------------------------------------------------

    def add(self, agent: Agent) -> None:
        """A new agent, or one read at the start."""
        self.agents[agent.id] = agent
        self._by_public_id[agent.public_id] = agent
        self.classify(agent)

    def remove(self, agent: Agent) -> None:
        """The agent is unknown from now on. Its leases run out by themselves: its tasks may still be alive."""
        self.agents.pop(agent.id, None)
        self._by_public_id.pop(agent.public_id, None)
        self._waiting.pop(agent.id, None)
        for digest in agent.assertions:
            self._by_assertion.pop(digest, None)
        agent.wake()

    def find(self, public_id: str) -> Agent | None:
        """The agent with this id."""
        return self._by_public_id.get(public_id)

    def is_online(self, agent: Agent, now: float) -> bool:
        """Whether it was heard of within three heartbeats."""
        return now - agent.last_seen <= HEARTBEATS_MISSED * self.heartbeat_seconds

    def note_gateway(self, agent: Agent, gateway: jobs.GatewayState) -> None:
        """Its host says how its gateway is."""
        if agent.gateway != gateway:
            agent.gateway = gateway
            self.classify(agent)

    def classify(self, agent: Agent) -> None:
        """Find out which classes the agent can serve."""
        agent.classes = {number for number, known in self.classes.items() if known.is_served_by(agent)}

    def add_class(self, known: JobClass) -> None:
        """A class came up with the first job of its kind."""
        if known.id in self.classes:
            return
        self.classes[known.id] = known
        self.maybe_ready.add(known.id)
        for agent in self.agents.values():
            if known.is_served_by(agent):
                agent.classes.add(known.id)

    # --- assertions --------------------------------------------------------------------------------------------------

    def by_assertion(self, digest: bytes, now_ms: int) -> Agent | None:
        """The agent whose assertion was verified before and still holds."""
        agent = self._by_assertion.get(digest)
        if agent is None or agent.assertions[digest] < now_ms:
            return None
        return agent

    def remember_assertion(self, agent: Agent, digest: bytes, until_ms: int) -> None:
        """Remember a verdict. Two for each agent are kept: the current one and the one before."""
        while len(agent.assertions) > 1:
            oldest = next(iter(agent.assertions))
            del agent.assertions[oldest]
            self._by_assertion.pop(oldest, None)
        agent.assertions[digest] = until_ms
        self._by_assertion[digest] = agent

    # --- leases ------------------------------------------------------------------------------------------------------

    def hold(self, held: Held) -> None:
        """An agent holds a task from now on."""
        self.held[held.task_id] = held
        held.agent.held[held.task_id] = held

    def release(self, task_id: str) -> None:
        """The task has ended."""
        held = self.held.pop(task_id, None)
        if held is not None:
            held.agent.held.pop(task_id, None)

    def want_checkpoint(self, task_id: str) -> None:
        """Somebody wants a checkpoint of a task; its agent is told with its next poll's answer."""
        held = self.held.get(task_id)
        if held is not None:
            held.checkpoint_poll = 0
            held.agent.wake()

    def answer(self, answer: wire.Answer) -> None:
        """A task is told something; its agent hears at once that there is something."""
        held = self.held.get(answer.task_id)
        if held is None:
            return
        held.answers.pop(answer.report, None)
        held.answers[answer.report] = answer
        if len(held.answers) > MAX_ANSWERS:
            del held.answers[next(iter(held.answers))]
        held.agent.orders = True
        held.agent.wake()

    def expired(self, now: float) -> list[Held]:
        """Tasks whose lease has run out."""
        return [held for held in self.held.values() if held.deadline <= now]

    def next_deadline(self) -> float | None:
        """When the next lease runs out unless renewed."""
        return min((held.deadline for held in self.held.values()), default=None)

    # --- waiting for work --------------------------------------------------------------------------------------------

    def wait_for_work(self, agent: Agent) -> None:
        """The agent's poll is held and takes work."""
        self._waiting[agent.id] = agent

    def leave_queue(self, agent: Agent) -> bool:
        """The agent's poll looks by itself now; False: it was woken for something (or did not wait for work)."""
        return self._waiting.pop(agent.id, None) is not None

    def take_waiting(self, class_id: int, memory_bytes: int) -> Agent | None:
        """Take the longest waiting agent for a job of this class and size out of the queue; the caller wakes it."""
        for agent in self._waiting.values():
            if class_id in agent.classes and memory_bytes <= agent.poll_memory:
                del self._waiting[agent.id]
                return agent
        return None

    def announce(self, class_id: int, memory_bytes: int) -> bool:
        """A job of this class and size is ready: wake the longest waiting agent that can take it, if there is one."""
        self.maybe_ready.add(class_id)
        agent = self.take_waiting(class_id, memory_bytes)
        if agent is None:
            return False
        agent.wake()
        return True

    def holding_polls(self) -> Iterator[Agent]:
        """Agents whose poll is held."""
        return (agent for agent in self.agents.values() if agent.waiter is not None)

"""Everything one control plane process has, put together once and handed to services and routes."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from agentina import errors
from agentina.control import bells, blobs, config, fleet, keys, metrics
from agentina.control.rollouts import figures
from agentina.control.services import changes, lifecycle, rollout_members
from agentina.control.store import agents, anomalies, engine, jobs, registry, tasks
from agentina.protocol import budgets, signing, wire
from agentina.protocol.states import Reason
from agentina.system import clock as clocks

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """Who an operator token belongs to."""

    name: str
    #: ``viewer``, ``operator`` or ``admin``.
    role: str


class Plane:
    """The parts of a running control plane."""

    def __init__(
        self, settings: config.Settings, *, store: engine.Store, identity: keys.Keys, clock: clocks.Clock
    ) -> None:
        self.settings = settings
        self.store = store
        self.identity = identity
        self.clock = clock
        #: Boot clock seconds at which this process began to listen.
        self.started = clock.boot()
        self.blobs = blobs.Blobs(settings.data / "blobs")
        self.fleet = fleet.Fleet(lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.heartbeat_seconds)
        self.members = rollout_members.Members(store)
        self.bells = bells.Bells(limit=settings.max_held_requests)
        self.metrics = metrics.Metrics()
        #: Operators by the hash of their token.
        self.operators: dict[str, Operator] = {}
        #: Set once the process stops: no new work, held requests end.
        self.is_stopping = False
        #: Ends of backoffs: (boot clock seconds, row id of the job), a heap; and the newest of each job, which counts.
        self.backoffs: list[tuple[float, int]] = []
        self.backoff_ends: dict[int, float] = {}
        #: What heartbeats told of the use of models and is not stored yet, by the row id of the task.
        self.usage_told: dict[int, list[budgets.ModelUsage]] = {}
        #: Version and title of the newest release by channel and architecture; the duty for releases fills it.
        self.offers: dict[tuple[str, str], tuple[str, str]] = {}
        #: All versions in any channel; None: there is no repository, or nobody looked yet.
        self.published: frozenset[str] | None = None
        #: Downloads of releases going on.
        self.release_downloads = 0
        #: Set when a duty has something to do earlier than it thought.
        self.duties_bell = asyncio.Event()

    def load(self) -> None:
        """Fill memory from the database. Every live lease gets a full term."""
        now, now_ms = self.clock.boot(), self.clock.wall_ms()
        self.load_operators()
        self.store.read(lambda tx: self._load(tx, now, now_ms))

    def load_operators(self) -> None:
        """Read the operators; they are few and change rarely."""
        rows = self.store.read(registry.operators, snapshot=False)
        self.operators = {
            row["token_sha256"]: Operator(row["name"], row["role"]) for row in rows if row["revoked_ms"] is None
        }

    def _load(self, tx: engine.Transaction, now: float, now_ms: int) -> None:
        for row in jobs.classes(tx):
            self.fleet.add_class(job_class(row))
        ledgers = agents.ledgers(tx)
        for row in agents.present(tx):
            agent = agent_from_row(row)
            if row["id"] in ledgers:
                agent.ledger = msgspec.json.decode(ledgers[row["id"]], type=figures.Ledger)
            self.fleet.add(agent)
        wished = tasks.wished_checkpoints(tx)
        for task in tasks.held(tx):
            owner = self.fleet.agents.get(task.agent_id)
            if owner is None:
                owner = agent_from_row(agents.by_id(tx, task.agent_id))
            held = fleet.Held(
                agent=owner, task=task.id, task_id=task.public_id, job=task.job_id, job_id=task.job.public_id,
                memory_bytes=task.job.memory_bytes, state=task.state, deadline=now + self.settings.lease_seconds,
            )  # fmt: skip
            if task.stop_reason is not None:
                held.stop = wire.StopTask(task_id=held.task_id, reason=Reason(task.stop_reason))
            if task.id in wished:
                held.checkpoint_poll = 0
            self.fleet.hold(held)
        for answer in anomalies.answers(tx):
            self.fleet.answer(answer)
        for row in jobs.backing_off(tx):
            # No longer than the job says: the wall clock may have been ahead when that was written.
            longest = lifecycle.longest_delay(lifecycle.read_policy(row["spec"]).retry)
            self._back_off(row["id"], now + min(max(row["runnable_ms"] - now_ms, 0) / 1000, longest))

    def _back_off(self, job: int, until: float) -> None:
        self.backoff_ends[job] = until
        heapq.heappush(self.backoffs, (until, job))

    async def write(
        self,
        operation: Callable[[changes.Work], T],
        *,
        committed: Callable[[T], object] | None = None,
        is_patient: bool = False,
    ) -> T:
        """Run an operation and, once it is durable, let memory follow: ``committed`` first, then its changes.

        ``is_patient``: see :meth:`engine.Store.write`.

        Raises:
            AgentinaError: What the operation raised (it has changed nothing then), ``STORAGE_FULL``, ``SHUTTING_DOWN``.

        """
        effects, now_ms = changes.Changes(), self.clock.wall_ms()
        result = await self.store.write(lambda tx: operation(changes.Work(tx, now_ms, effects)), is_patient=is_patient)
        if committed is not None:
            committed(result)
        self._carry_out(effects)
        return result

    def _carry_out(self, effects: changes.Changes) -> None:
        self._follow_tasks(effects)
        for job, delay in effects.delayed:
            self._back_off(job, self.clock.boot() + delay)
            self.duties_bell.set()
        for class_id, memory_bytes in effects.ready:
            self.fleet.announce(class_id, memory_bytes)
        for job_id in effects.jobs:
            self.bells.ring(job_id)
        for answer in effects.answers:
            self.fleet.answer(answer)
        if effects.anomalies or effects.is_anomaly_changed:
            self.bells.ring("anomalies")
        # Last: whatever is wrong with a figure, no job waits for it.
        self._count(effects)

    def has_work(self, agent: fleet.Agent) -> bool:
        """Whether a job is ready that ``agent`` could take."""
        return self._find_work(agent, any)

    def pass_on_work(self, agent: fleet.Agent) -> None:
        """Wake others for what ``agent`` was woken for but cannot take after all."""
        for class_id in self._find_work(agent, list):
            self.fleet.announce(class_id, 0)

    def _find_work(self, agent: fleet.Agent, gather: Callable[[Iterable[int]], T]) -> T:
        """What ``gather`` makes of the classes with a job that ``agent`` could take, looked up one by one."""
        looked_at = agent.classes & self.fleet.maybe_ready
        if not looked_at:
            return gather(())
        return self.store.read(lambda tx: gather(self._fitting(tx, looked_at, agent.poll_memory)))

    def _fitting(self, tx: engine.Transaction, looked_at: set[int], memory_bytes: int) -> Iterator[int]:
        """Those of the classes of which a job is ready that fits (their ids count from 1)."""
        for class_id in looked_at:
            if jobs.is_any_ready(tx, class_id, memory_bytes):
                yield class_id
            elif not jobs.is_any_ready(tx, class_id):
                # What cannot be seen yet is announced once it is committed, and so after this.
                self.fleet.maybe_ready.discard(class_id)

    def stop(self) -> None:
        """Begin to stop: every held request ends now."""
        self.is_stopping = True
        self.bells.close()
        for agent in list(self.fleet.holding_polls()):
            agent.wake()

    def sign(self, purpose: str, payload: bytes) -> signing.Signed:
        """Sign with the control plane's key."""
        return self.identity.signing_key.sign(purpose, payload)

    def check_running(self) -> None:
        """Raise ``SHUTTING_DOWN`` once the process stops."""
        if self.is_stopping:
            raise errors.SHUTTING_DOWN()  # noqa: RSE102 - calling the entry makes the exception

    def _follow_tasks(self, effects: changes.Changes) -> None:
        for task_id, state in effects.progressed:
            held = self.fleet.held.get(task_id)
            if held is not None:
                held.state = state
                held.is_taken, held.spec = True, None
        for task_id in effects.checkpointed:
            held = self.fleet.held.get(task_id)
            if held is not None:
                held.checkpointed = self.clock.boot()
        for ended in effects.ended_tasks:
            self.fleet.release(ended.task_id)
        for stop in effects.stops:
            held = self.fleet.held.get(stop.task_id)
            if held is not None and held.stop is None:
                held.stop = stop
                held.agent.wake()

    def _count(self, effects: changes.Changes) -> None:
        for ended in effects.ended_tasks:
            agent = self.fleet.agents.get(ended.agent)
            if agent is not None:
                agent.ledger.add(ended.state, ended.duration, self.clock.wall_ms())
                agent.is_work_counted = True
            band = metrics.priority_band(ended.priority)
            self.metrics.tasks.labels(ended.role, ended.state.value, band).inc()
            if ended.duration is not None:
                self.metrics.session_duration.labels(ended.role).observe(ended.duration)
            if ended.usage.memory_peak_bytes is not None:
                peak = metrics.bounded(ended.usage.memory_peak_bytes)
                self.metrics.memory_peak.labels(ended.role).observe(peak)
            self.metrics.count_io(ended.role, ended.usage)
            if ended.run is not None:
                self.metrics.count_run(ended.role, ended.run)
        for state in effects.ended_jobs:
            self.metrics.jobs.labels(state.value).inc()
        for role, model, used in effects.used:
            self.metrics.count_use(role, model, used)
        for kind, code in effects.anomalies:
            self.metrics.count_anomaly(kind, code)
        self.metrics.checkpoints.inc(len(effects.checkpointed))
        for seconds in effects.start_latencies:
            self.metrics.start_latency.observe(seconds)


def job_class(row: engine.Row) -> fleet.JobClass:
    """The class of a row of ``classes``."""
    return fleet.JobClass(
        id=row["id"], organization_id=row["organization_id"], role=row["role"],
        labels=msgspec.json.decode(row["labels"]), runner=row["runner"], gateway=row["gateway"],
    )  # fmt: skip


def agent_from_row(row: engine.Row) -> fleet.Agent:
    """The agent of a row of ``agents``."""
    agent = fleet.Agent(row["id"], row["public_id"], signing.parse_public_key(row["public_key"]))
    agent.created_ms = row["created_ms"]
    agent.heartbeat_ms = row["last_heartbeat_ms"]
    agent.license_issued_ms = row["license_issued_ms"]
    agent.host = msgspec.json.decode(row["host"], type=wire.HostFacts) if row["host"] else None
    refresh_agent(agent, row)
    return agent


def refresh_agent(agent: fleet.Agent, row: engine.Row) -> None:
    """Take over what operations change in the row of an agent."""
    for name in (
        "organization_id", "organization", "plan", "max_agents", "license_tasks", "channel", "offline_grace_hours",
        "hostname", "instance", "role", "max_concurrent_tasks", "state", "state_reason", "session", "version",
        "executor", "pinned",
    ):  # fmt: skip
        setattr(agent, name, row[name])
    for name in ("labels", "guarantees", "runners", "facts"):
        setattr(agent, name, msgspec.json.decode(row[name]))

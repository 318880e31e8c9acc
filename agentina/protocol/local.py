"""The daemon's local socket: one JSON request line, one JSON answer line; what `agentina status` shows.

The socket's permissions let in root, the daemon's own user, and members of its group: they may look. Peers who want to
change anything are checked by their credentials (SO_PEERCRED, unix(7)): only root and the daemon's user may.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agentina.protocol import budgets, jobs, licensing, wire
from agentina.protocol.states import Reason, State

#: Longest request or answer line, in bytes.
MAX_LINE = 8 << 20


class LocalRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``status``; ``drain`` and ``resume`` (this host's own wish, kept over restarts); ``refresh`` (heartbeat now).

    ``reload``: read the policy and look for runners again.
    ``probe``: have a task of the daemon's own take more memory than it may; the status then tells what came of it.
    """

    verb: Literal["status", "drain", "resume", "refresh", "reload", "probe"]
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    #: ``drain``: have the tasks that can go on elsewhere do so.
    move: bool = False


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that needs attention: a code of the error catalogue, in words, and what to do."""

    code: str
    severity: Literal["warning", "error"]
    message: str
    remedy: str


class LocalTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task as its host sees it."""

    task_id: str
    name: str
    state: State
    reason: Reason
    detail: str = ""
    pid: int = 0
    started_ms: int | None = None
    memory_limit_bytes: int = 0
    output_bytes: int = 0
    #: Seconds until the lease runs out; None when nothing runs.
    lease_seconds: float | None = None
    #: How far it said it was.
    progress: wire.Progress | None = None
    #: What it used of models so far, and its budget; None: it has none.
    used: budgets.Amounts | None = None
    budget: jobs.Budget | None = None
    #: Why it is held at a call of a model; empty: it is not.
    parked: str = ""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task of the daemon's own that was to take more memory than it may.

    agentina/host/updating/probe.py runs it.
    """

    #: It is under way.
    running: bool = False
    limit_bytes: int = 0
    #: How it ended; None: it has not, or could not be run.
    outcome: wire.Outcome | None = None
    #: Why it could not be run.
    error_code: str = ""
    detail: str = ""


class LicenseView(msgspec.Struct, frozen=True, kw_only=True):
    """The license, and how long the host may go on without the control plane."""

    plan: str
    max_agents: int
    max_concurrent_tasks_per_agent: int
    channel: str
    expires_ms: int
    offline_grace_hours: float
    #: Seconds of grace left; the full grace while connected.
    grace_left_seconds: float

    @classmethod
    def of(cls, license_: licensing.License, *, grace_left_seconds: float) -> LicenseView:
        """Show a license."""
        return cls(
            plan=license_.plan,
            max_agents=license_.max_agents,
            max_concurrent_tasks_per_agent=license_.max_concurrent_tasks_per_agent,
            channel=license_.channel,
            expires_ms=license_.expires_ms,
            offline_grace_hours=license_.offline_grace_hours,
            grace_left_seconds=grace_left_seconds,
        )


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``status``: everything `agentina status` prints, and its ``--json``."""

    instance: str
    version: str
    #: ``online``, ``offline`` (no session; the reason says on whose side it lies), ``draining``, ``quarantined``,
    #: ``stopped`` (no daemon).
    state: Literal["online", "offline", "draining", "quarantined", "stopped"]
    state_reason: str = ""
    healthy: bool
    agent_id: str = ""
    organization: str = ""
    role: str | None = None
    labels: dict[str, str] = {}
    control_plane: str = ""
    session: int = 0
    pid: int = 0
    started_ms: int | None = None
    last_heartbeat_ms: int | None = None
    last_error: str = ""
    license: LicenseView | None = None
    channel: str = ""
    update_available: str = ""
    update_title: str = ""
    #: The control plane's settings that hold here (``cfg-…``; ``none``; empty: it may set none), and what became of the
    #: latest order for some.
    configuration: str = ""
    configuration_report: wire.UpdateReport | None = None
    #: The latest update of this host; None: there was none.
    update: wire.UpdateReport | None = None
    #: The latest task over its memory limit; None: nobody asked for one.
    probe: Probe | None = None
    tasks: list[LocalTask] = []
    max_concurrent_tasks: int = 0
    slots_free: int = 0
    #: Why no (or less) new work is taken now; empty when nothing holds it back.
    admission: str = ""
    executor: str = ""
    guarantees: dict[str, str] = {}
    #: Runners of AI agents, each with the program that it starts.
    runners: dict[str, str] = {}
    host: wire.HostFacts | None = None
    reports_waiting: int = 0
    problems: list[Problem] = []


class LocalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer: the status after the verb was carried out, or an error."""

    status: InstanceStatus | None = None
    error: dict[str, object] | None = None

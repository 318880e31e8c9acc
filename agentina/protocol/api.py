"""The messages of the operator API: what the command line, Ansible and pages exchange with the control plane.

Additive only: fields are added with defaults, never renamed or removed. Times ending in ``_ms`` are milliseconds since
the Unix epoch in the control plane's clock; None means "not yet".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from agentina.protocol import jobs
from agentina.protocol.states import Reason, State
from agentina.protocol.wire import ArtifactInfo, HostFacts, Outcome


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all requests: unknown keys are errors."""


# --- jobs --------------------------------------------------------------------------------------------------------


class JobSummary(_Message, frozen=True, kw_only=True):
    """One line of a job list."""

    id: str
    name: str
    organization: str
    state: State
    reason: Reason
    #: The reason in words, with particulars.
    detail: str = ""
    role: str | None = None
    priority: int = 50
    created_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    #: Attempts that were started.
    attempts: int = 0
    #: The newest task's agent: id, and `host/instance` for people.
    agent_id: str | None = None
    agent: str | None = None


class TaskView(_Message, frozen=True, kw_only=True):
    """One task (attempt) of a job."""

    id: str
    number: int
    agent_id: str
    agent: str
    state: State
    reason: Reason
    detail: str = ""
    assigned_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    pid: int | None = None
    #: Output bytes the control plane has.
    output_bytes: int = 0
    outcome: Outcome | None = None


class JobEvent(_Message, frozen=True, kw_only=True):
    """One line of a job's timeline."""

    #: Ascending within a job.
    number: int
    at_ms: int
    task_id: str | None = None
    state: State | None = None
    text: str


class JobView(_Message, frozen=True, kw_only=True):
    """Everything about one job. Environment values are hidden in ``spec``."""

    job: JobSummary
    spec: jobs.JobSpec
    tasks: list[TaskView] = []
    events: list[JobEvent] = []
    artifacts: list[ArtifactInfo] = []
    #: For a queued job: why no agent has taken it yet, a sentence each.
    blockers: list[str] = []
    #: Ended without success and out of attempts: a dead letter, kept until retried or removed.
    dead_letter: bool = False


class JobList(_Message, frozen=True, kw_only=True):
    """``GET /v1/jobs``."""

    jobs: list[JobSummary]
    #: Pass as ``after`` for the next page; None: the end.
    next: str | None = None


class JobCreated(_Message, frozen=True, kw_only=True):
    """``POST /v1/jobs``."""

    id: str
    #: False when the same idempotency key had made it before.
    created: bool = True


class JobEvents(_Message, frozen=True, kw_only=True):
    """``GET /v1/jobs/{job}/events?after=N&wait=S``: for following a job without busy polling."""

    state: State
    final: bool
    task_id: str | None = None
    events: list[JobEvent]


# --- activation tokens -----------------------------------------------------------------------------------------------


class TokenCreate(_Request, frozen=True, kw_only=True):
    """``POST /v1/tokens``."""

    organization: str = "default"
    role: str | None = None
    labels: dict[str, str] = {}
    expires_seconds: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] = 14 * 86_400.0
    count: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class TokenSecret(_Message, frozen=True, kw_only=True):
    """A new token. The only time its text is shown."""

    id: str
    token: str
    expires_ms: int


class TokensCreated(_Message, frozen=True, kw_only=True):
    """Answer to :class:`TokenCreate`."""

    tokens: list[TokenSecret]


class TokenView(_Message, frozen=True, kw_only=True):
    """A token without its text."""

    id: str
    organization: str
    role: str | None = None
    labels: dict[str, str] = {}
    state: Literal["unused", "used", "expired", "revoked"]
    created_ms: int
    expires_ms: int
    used_ms: int | None = None
    used_by: str | None = None
    agent_id: str | None = None
    #: Times somebody else tried it afterwards.
    refused: int = 0


class TokenList(_Message, frozen=True, kw_only=True):
    """``GET /v1/tokens``."""

    tokens: list[TokenView]


# --- agents ------------------------------------------------------------------------------------------------------


class AgentView(_Message, frozen=True, kw_only=True):
    """An agent as the control plane knows it."""

    id: str
    organization: str
    hostname: str
    instance: str
    role: str | None = None
    labels: dict[str, str] = {}
    #: ``active``, ``draining``, ``quarantined``.
    state: Literal["active", "draining", "quarantined"]
    state_reason: str = ""
    #: Its host takes no new work (`agentina drain` there), whatever ``state`` says.
    draining_by_host: bool = False
    #: Heard of within three heartbeats.
    online: bool
    last_heartbeat_ms: int | None = None
    version: str = ""
    executor: str = ""
    guarantees: dict[str, str] = {}
    max_concurrent_tasks: int = 1
    #: Tasks it holds now.
    tasks: list[str] = []
    session: int = 0
    created_ms: int
    host: HostFacts | None = None
    facts: dict[str, str] = {}


class AgentList(_Message, frozen=True, kw_only=True):
    """``GET /v1/agents``."""

    agents: list[AgentView]


class AgentAct(_Request, frozen=True, kw_only=True):
    """Body of drain, resume and quarantine; the reason is kept in the audit and shown to others."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


# --- the rest ----------------------------------------------------------------------------------------------------


class AuditEntry(_Message, frozen=True, kw_only=True):
    """One hash-chained audit record."""

    number: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any] = {}
    hash: str = ""


class AuditList(_Message, frozen=True, kw_only=True):
    """``GET /v1/audit``."""

    entries: list[AuditEntry]
    next: int | None = None


class OrganizationView(_Message, frozen=True, kw_only=True):
    """``GET /v1/organizations/{name}``: a tenant and its limits."""

    name: str
    plan: str
    max_agents: int
    max_concurrent_tasks_per_agent: int
    channel: str
    offline_grace_hours: float
    agents: int = 0


class OrganizationUpdate(_Request, frozen=True, kw_only=True):
    """``PUT /v1/organizations/{name}``: create or change; absent keys keep their value."""

    plan: Annotated[str, msgspec.Meta(max_length=32)] | None = None
    max_agents: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    max_concurrent_tasks_per_agent: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    channel: Literal["stable", "beta", "enterprise-lts", "dev"] | None = None
    offline_grace_hours: Annotated[float, msgspec.Meta(ge=0, le=87_600)] | None = None


class WhoAmI(_Message, frozen=True, kw_only=True):
    """``GET /v1/whoami``."""

    operator: str
    role: Literal["admin", "operator", "viewer"]
    control_plane_id: str
    version: str


class ArtifactList(_Message, frozen=True, kw_only=True):
    """``GET /v1/jobs/{job}/artifacts``: what the newest task that left any left."""

    artifacts: list[ArtifactInfo]


class AuditVerified(_Message, frozen=True, kw_only=True):
    """``GET /v1/audit/verify``."""

    intact: bool
    #: Number of the first record that does not follow from the one before.
    first_broken: int | None = None

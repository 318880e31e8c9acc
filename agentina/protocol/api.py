"""The messages of the operator API: what the command line, Ansible and pages exchange with the control plane.

Additive only: fields are added with defaults, never renamed or removed. Times ending in ``_ms`` are milliseconds since
the Unix epoch in the control plane's clock; None means "not yet".
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from agentina.protocol import budgets, jobs
from agentina.protocol.settings import Settings
from agentina.protocol.states import Reason, State
from agentina.protocol.wire import AgentRun, ArtifactInfo, HostFacts, Outcome, Progress, UpdateReport

#: Most jobs submitted together: one transaction, and one poll's answer can carry them all.
MAX_BATCH_JOBS: Final = 128
#: Largest body that submits jobs together, in bytes.
MAX_BATCH_BYTES: Final = 4 << 20


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
    #: How far an AI agent is, as of its host's last heartbeat; when it has ended see ``outcome``.
    run: AgentRun | None = None
    #: What a running task used of models, likewise.
    models: list[budgets.ModelUsage] = []
    #: How far it said it was, last.
    progress: Progress | None = None
    #: Why it is held at a call of a model (a budget is used up); empty: it is not.
    parked: str = ""
    #: When its host was heard of last, which is how new ``run``, ``models`` and ``parked`` are; None: nobody holds it.
    as_of_ms: int | None = None


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
    #: Ended without success and not to be tried again: a dead letter, kept until retried or removed.
    dead_letter: bool = False
    #: What its tasks used of models, by model; those that run as of some seconds ago.
    usage: list[budgets.UsageRow] = []


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


class JobOfBatch(_Request, frozen=True, kw_only=True):
    """One of the jobs submitted together."""

    #: A job document (docs/reference/jobs.md): read by its own parser, which takes sizes and durations as text.
    job: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/JobSpec"})]
    #: Submitting it again with the same key makes no second job.
    idempotency_key: str | None = None


class JobBatch(_Request, frozen=True, kw_only=True):
    """``POST /v1/job-batches``: stored in one transaction, all of them or none."""

    jobs: Annotated[list[JobOfBatch], msgspec.Meta(min_length=1, max_length=MAX_BATCH_JOBS)]


class JobsCreated(_Message, frozen=True, kw_only=True):
    """The answer to a batch, in its order."""

    jobs: list[JobCreated]


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
    #: What it can run.
    runners: list[str] = []
    guarantees: dict[str, str] = {}
    max_concurrent_tasks: int = 1
    #: Tasks it holds now.
    tasks: list[str] = []
    session: int = 0
    created_ms: int
    host: HostFacts | None = None
    facts: dict[str, str] = {}
    #: Channel of releases, and the newest release in it for this host's machine; empty: unknown.
    channel: str = ""
    newest: str = ""
    #: It runs an older version than there is for it.
    behind: bool = False
    #: The only version an operator lets it run; empty: any.
    pinned: str = ""
    #: The same of its host's owner, and when he lets rollouts change it.
    host_pinned: str = ""
    update_window: str = ""
    #: The latest update on its host, as of the last heartbeat.
    update: UpdateReport | None = None
    #: The settings that hold there (``cfg-…``, ``none``; empty: its host takes none; None: not heard yet), those that
    #: the newest rollout wants there, and what became of the latest order for some.
    configuration: str | None = None
    configuration_wanted: str = ""
    configuration_report: UpdateReport | None = None

    @property
    def name(self) -> str:
        """Host and instance, for people."""
        return f"{self.hostname}/{self.instance}"


class AgentList(_Message, frozen=True, kw_only=True):
    """``GET /v1/agents``."""

    agents: list[AgentView]


class AgentAct(_Request, frozen=True, kw_only=True):
    """Body of drain, resume and quarantine; the reason is kept in the audit and shown to others."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class AgentPin(_Request, frozen=True, kw_only=True):
    """``POST /v1/agents/{agent}/pin``: hold an agent to a version; empty: to none."""

    version: Annotated[str, msgspec.Meta(max_length=64)] = ""


# --- rollouts ----------------------------------------------------------------------------------------------------


class RolloutStart(_Request, frozen=True, kw_only=True):
    """``POST /v1/rollouts``: bring a release, or settings, to agents, a few at first.

    docs/explanation/rollouts.md has the rules.
    """

    #: Of a release; or, instead, settings for the hosts.
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    settings: Settings | None = None
    #: ``organization=``, ``role=``, ``channel=``, ``label.NAME=``; an agent must meet all. None: all agents.
    select: Annotated[list[Annotated[str, msgspec.Meta(max_length=200)]], msgspec.Meta(max_length=64)] = []
    canary: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    soak_seconds: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 86_400.0
    batch_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 25.0
    watch_seconds: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 3600.0
    #: Agents of batches that may fail, in percent; of the canaries none may.
    tolerance_percent: Annotated[float, msgspec.Meta(ge=0, le=50)] = 5.0
    #: How long an agent may take for its update before the others no longer wait for it.
    patience_seconds: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] = 3600.0
    #: ``[DAYS] HH:MM-HH:MM`` in UTC: upgrades are ordered only then.
    window: Annotated[str, msgspec.Meta(max_length=64)] = ""
    #: Ids of agents to leave out.
    skip: Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=10_000)] = []


class RolloutAct(_Request, frozen=True, kw_only=True):
    """Body of pause, resume and abort; the reason is kept in the audit and the timeline."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class RolloutSkip(_Request, frozen=True, kw_only=True):
    """``POST /v1/rollouts/{rollout}/skip``: leave an agent out."""

    agent: Annotated[str, msgspec.Meta(max_length=64)]


class RolloutSummary(_Message, frozen=True, kw_only=True):
    """One line of a list of rollouts."""

    id: str
    #: ``release`` or ``configuration``.
    kind: str = "release"
    #: Of the release, or (``cfg-…``) of the settings.
    version: str
    #: ``running``, ``paused``, ``rolling-back``, ``completed``, ``rolled-back``.
    state: str
    #: 1: canaries; 2 and on: batches.
    stage: int
    #: ``filling``: agents are being changed; ``watching``: they are watched.
    phase: str
    #: Why it is halted, aborted or paused, and the gate that halted it.
    reason: str = ""
    gate: str = ""
    select: str
    #: Agents by their standing.
    agents: dict[str, int] = {}
    created_ms: int
    created_by: str


class RolloutAgent(_Message, frozen=True, kw_only=True):
    """An agent's part in a rollout."""

    id: str
    #: Host and instance.
    name: str
    version: str
    standing: str
    stage: int = 0
    #: Why it stands there, or what keeps it from being asked.
    reason: str = ""
    since_ms: int = 0


class RolloutLine(_Message, frozen=True, kw_only=True):
    """A line of a rollout's timeline."""

    number: int
    at_ms: int
    text: str


class RolloutWork(_Message, frozen=True, kw_only=True):
    """What the gates of work compare: tasks of some agents over some time."""

    #: ``updated``: since they have the release; ``past``: the same agents before; ``others``: those without it.
    who: str
    tasks: int
    failed: int
    #: Geometric mean of the seconds that successful tasks took; None: there were none.
    typical_seconds: float | None = None
    agent_seconds: float = 0.0


class RolloutView(_Message, frozen=True, kw_only=True):
    """Everything about one rollout."""

    rollout: RolloutSummary
    #: Grows with every change; pass it as ``revision`` to wait for the next.
    revision: int
    #: What was asked for.
    plan: RolloutStart
    #: Seconds of the present watch so far, and how long it is.
    watched_seconds: float = 0.0
    watch_seconds: float = 0.0
    work: list[RolloutWork] = []
    #: Those that need attention first; ``rollout.agents`` counts them all.
    agents: list[RolloutAgent] = []
    lines: list[RolloutLine] = []


class RolloutList(_Message, frozen=True, kw_only=True):
    """``GET /v1/rollouts``: the newest first."""

    rollouts: list[RolloutSummary]


# --- anomalies ---------------------------------------------------------------------------------------------------


class AnomalySummary(_Message, frozen=True, kw_only=True):
    """A finding that stays open until somebody resolves it: reports that are the same, added up."""

    id: str
    organization: str
    #: docs/explanation/anomalies.md has the kinds.
    kind: str
    #: Of the error catalogue, mostly; then ``cause`` and ``remedy`` are its words.
    code: str
    summary: str
    #: ``open``, ``acknowledged``, ``answered``, ``closed``.
    state: str
    #: How often it happened at least, on how many agents, and how often again after it was closed.
    count: int
    agents: int
    reopened: int = 0
    first_ms: int
    last_ms: int
    #: When and by whom it came to its state, and what they said.
    changed_ms: int
    changed_by: str = ""
    reason: str = ""
    #: What an operator says to the tasks that reported it.
    answer: str = ""
    answered_by: str = ""
    answered_ms: int | None = None
    #: Grows with every change of any anomaly.
    revision: int
    cause: str = ""
    remedy: str = ""


class AnomalyReport(_Message, frozen=True, kw_only=True):
    """One report of an anomaly."""

    #: None: the control plane's own.
    agent_id: str | None = None
    agent: str = ""
    task_id: str = ""
    release: str = ""
    summary: str
    count: int
    #: By the host's clock.
    first_ms: int
    at_ms: int
    received_ms: int
    evidence: dict[str, str] = {}


class AnomalyView(_Message, frozen=True, kw_only=True):
    """``GET /v1/anomalies/{anomaly}``: the newest reports come first."""

    anomaly: AnomalySummary
    reports: list[AnomalyReport] = []


class AnomalyList(_Message, frozen=True, kw_only=True):
    """``GET /v1/anomalies``: what happened last comes first."""

    anomalies: list[AnomalySummary]
    #: Of the last change of any; pass it as ``since``, with ``wait``, for what changes after it.
    revision: int = 0
    #: Pass as ``after`` for the next page; None: the end.
    next: str | None = None


class AnomalyAct(_Request, frozen=True, kw_only=True):
    """Body of acknowledge, close and reopen; the reason is kept in the audit and shown to others."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class AnomalyAnswer(_Request, frozen=True, kw_only=True):
    """``POST /v1/anomalies/{anomaly}/answer``: what is said to the tasks that reported it."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


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
    """``GET /v1/audit``: oldest first, or newest first with ``before``; ``since`` is in milliseconds since the epoch.

    ``actor``, ``action`` and ``subject`` are beginnings of what is wanted.
    """

    entries: list[AuditEntry]
    #: ``after`` of the next page, or its ``before``; absent: there is none. A page may be empty and not the last.
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


class OrganizationList(_Message, frozen=True, kw_only=True):
    """``GET /v1/organizations``."""

    organizations: list[OrganizationView]


class OrganizationUpdate(_Request, frozen=True, kw_only=True):
    """``PUT /v1/organizations/{name}``: create or change; absent keys keep their value."""

    plan: Annotated[str, msgspec.Meta(min_length=1, max_length=32)] | None = None
    max_agents: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    max_concurrent_tasks_per_agent: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    channel: Literal["stable", "beta", "enterprise-lts", "dev"] | None = None
    offline_grace_hours: Annotated[float, msgspec.Meta(ge=0, le=87_600)] | None = None


OperatorRole = Literal["admin", "operator", "viewer"]


class OperatorCreate(_Request, frozen=True, kw_only=True):
    """``POST /v1/operators``."""

    name: str
    #: ``viewer`` sees all but changes nothing; ``operator`` does all but manage operators and organizations.
    role: OperatorRole = "operator"


class OperatorToken(_Message, frozen=True, kw_only=True):
    """An operator's new token. The only time its text is shown."""

    name: str
    role: OperatorRole
    token: str


class OperatorView(_Message, frozen=True, kw_only=True):
    """Somebody who may use this API, without the token."""

    name: str
    role: OperatorRole
    state: Literal["active", "revoked"]
    created_ms: int
    revoked_ms: int | None = None


class OperatorList(_Message, frozen=True, kw_only=True):
    """``GET /v1/operators``."""

    operators: list[OperatorView]


class WhoAmI(_Message, frozen=True, kw_only=True):
    """``GET /v1/whoami``."""

    operator: str
    role: OperatorRole
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

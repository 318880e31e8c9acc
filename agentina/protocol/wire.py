"""The messages between an agent and the control plane (the agent API under /v1/agent).

docs/reference/protocol.md gives the order of messages and the rules; the fields are documented here. Times ending in
``_ms`` are milliseconds since the Unix epoch; ``_seconds`` are durations; sizes are bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from agentina.protocol import budgets, jobs, signing
from agentina.protocol.states import Reason, State

#: Most reports in one request.
MAX_REPORTS: Final = 500
#: Largest JSON request body from an agent, in bytes.
MAX_BODY: Final = 4 << 20
#: Largest piece of output or artifact in one request, in bytes.
MAX_PIECE: Final = 1 << 20
#: Most assignments in one poll answer.
MAX_ASSIGNMENTS: Final = 128
#: Shortest lease of a task, in seconds: two heartbeats (one may be lost) and the host's margin of 5 s fit into it.
MIN_LEASE_SECONDS: Final = 15.0
#: Longest text about particulars, in characters.
MAX_DETAIL: Final = 4096
#: Longest final answer of an AI agent that is kept apart from its output, in characters.
MAX_ANSWER: Final = 16_384
#: Longest summary of an anomaly, longest name of a piece of evidence, most pieces, and longest evidence altogether, in
#: characters.
MAX_SUMMARY: Final = 500
MAX_EVIDENCE_NAME: Final = 64
MAX_EVIDENCE_ENTRIES: Final = 16
MAX_EVIDENCE: Final = 8192
#: Most paths of one patch that are told.
MAX_CHANGED: Final = 500
#: Most tasks one agent reports as held.
MAX_HELD: Final = 10_000
#: Most tools of one run that are told apart.
MAX_TOOLS: Final = 32
#: Characters of a short text.
MAX_SHORT: Final = 256

Short = Annotated[str, msgspec.Meta(max_length=MAX_SHORT)]
Detail = Annotated[str, msgspec.Meta(max_length=MAX_DETAIL)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Labels = Annotated[dict[str, str], msgspec.Meta(max_length=64)]
ModelRows = Annotated[list[budgets.ModelUsage], msgspec.Meta(max_length=2 * budgets.MAX_ROWS)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages: unknown fields are skipped, absent ones take their default."""


# --- sessions and heartbeats ---------------------------------------------------------------------------------------


class Fingerprint(_Message, frozen=True, kw_only=True):
    """Five parts that tell one machine from another, each a hash; empty where the host does not reveal it."""

    cpu: Short = ""
    board: Short = ""
    disk: Short = ""
    mac: Short = ""
    hostname: Short = ""


ProgressText = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]


class Progress(_Message, frozen=True, kw_only=True):
    """How far a task is, in its own words."""

    text: ProgressText
    percent: Percent | None = None
    #: Host clock when it was said.
    at_ms: int = 0


class Held(_Message, frozen=True, kw_only=True):
    """A task the host holds: everything in its state directory that the control plane has not told it to forget."""

    task_id: str
    state: State
    #: Output bytes on disk so far.
    output_bytes: Count = 0
    #: The number of the last answer that is durably taken over; those after it are sent again.
    answered: Count = 0
    #: How far an AI agent is, its texts cut short; in heartbeats only.
    agent: AgentRun | None = None
    #: What it used of models so far; in heartbeats only.
    models: ModelRows = []
    #: Why it is held at a call of a model (a budget is used up); empty: it is not.
    parked: Detail = ""


class SessionOpen(_Message, frozen=True, kw_only=True):
    """``POST /v1/agent/session``: a (re)started daemon takes over. Everything it holds is listed."""

    version: Short
    protocol: int
    hostname: Short = ""
    instance: Short = ""
    #: The kernel's boot id: tells a restarted daemon from a restarted host.
    boot_id: Short = ""
    #: Id of the outbox; reports are numbered within it.
    stream: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    tasks: Annotated[list[Held], msgspec.Meta(max_length=MAX_HELD)] = []
    executor: Short = ""
    #: What this host can promise, for people: name of guarantee to sentence.
    guarantees: dict[str, str] = {}
    fingerprint: Fingerprint = Fingerprint()
    max_concurrent_tasks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    runners: list[Short] = []
    #: Further facts for people: operating system, architecture, kernel.
    facts: dict[str, str] = {}


class Answer(_Message, frozen=True, kw_only=True):
    """What an operator says to a task about something it reported."""

    #: Grows with each answer to the task: the host says with :attr:`Held.answered` how far it has them.
    number: Count
    task_id: str
    #: :attr:`Anomaly.id` of the report, and the anomaly it was added to.
    report: str
    anomaly: str
    text: Detail


class StopTask(_Message, frozen=True, kw_only=True):
    """A task to end, with why."""

    task_id: str
    reason: Reason
    detail: str = ""


class UpdateOrder(_Message, frozen=True, kw_only=True):
    """Another release that the control plane wants a host to run, or to leave."""

    #: Names the order. A host acts once on each: to have it try again, give another one.
    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]
    #: ``upgrade``: run ``version``; ``rollback``: leave ``version``, if that is what it runs or is on the way to.
    action: Literal["upgrade", "rollback"]
    version: Short


class ConfigurationOrder(_Message, frozen=True, kw_only=True):
    """Other settings that the control plane wants a host to use, or to leave; signed with purpose ``configuration``."""

    #: Names the order, as that of an update: a host acts once on each.
    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]
    agent_id: str
    #: ``apply``: use ``settings``; ``leave``: go back from ``version``, if that is what holds.
    action: Literal["apply", "leave"]
    #: ``cfg-`` and digits of the settings' hash.
    version: Short
    #: :class:`agentina.protocol.settings.Settings`; checked by the host, which may know fewer keys.
    settings: dict[str, Any] = {}


class Directives(_Message, frozen=True, kw_only=True):
    """What the control plane wants of the agent. Levels, not edges: every answer carries the present truth."""

    #: Take no new work; let tasks finish.
    drain: bool = False
    #: Set aside: take no work. The text says why; empty: not quarantined.
    quarantine: str = ""
    heartbeat_seconds: float = 60.0
    #: A task not renewed for this long is given away; the host ends it before (see protocol.md, leases).
    lease_seconds: float = 180.0
    #: A renewed license, when there is a newer one.
    license: signing.Signed | None = None
    #: A newer release in the agent's channel; empty: none.
    update_available: str = ""
    #: What is new in it: the title of its notes.
    update_title: str = ""
    #: The number of the newest answer to a task of the agent; heartbeats bring them.
    answers: Count = 0
    #: What a rollout wants of this host; None: nothing. Stays until the host's report names its id as over.
    update: UpdateOrder | None = None
    #: The same for settings: a :class:`ConfigurationOrder`.
    configuration: signing.Signed | None = None


class SessionOpened(_Message, frozen=True, kw_only=True):
    """Answer to :class:`SessionOpen`. The session number fences all earlier daemons of this agent."""

    session: int
    server_time_ms: int
    #: The last report applied from the named stream; the host forgets up to it.
    applied: int = 0
    #: Held tasks that are not (or no longer) the agent's: end them; their reports are kept for the record only.
    stop: list[StopTask] = []
    #: Held tasks whose ending and output the control plane has in full: delete them.
    forget: list[str] = []
    directives: Directives = Directives()
    organization: str = ""
    role: str | None = None
    labels: Labels = {}


class Pressure(_Message, frozen=True, kw_only=True):
    """PSI ``some avg10`` in percent (kernel Documentation/accounting/psi.rst); -1 where the kernel has none."""

    cpu: float = -1.0
    memory: float = -1.0
    io: float = -1.0


class HostFacts(_Message, frozen=True, kw_only=True):
    """How the host is."""

    load1: float = 0.0
    cpus: int = 1
    memory_bytes: Count = 0
    memory_free_bytes: Count = 0
    disk_bytes: Count = 0
    disk_free_bytes: Count = 0
    pressure: Pressure = Pressure()
    #: Host clock at sending, so that the control plane sees the difference.
    clock_ms: int = 0
    #: Reports waiting on disk.
    outbox: Count = 0
    #: What needs attention, codes of the error catalogue.
    attention: Annotated[list[Short], msgspec.Meta(max_length=64)] = []
    #: Why jobs with a budget cannot run here; empty: they can. ``attention`` tells a gateway that is broken from none.
    gateway: Short = ""


class UpdateReport(_Message, frozen=True, kw_only=True):
    """How far a host is with the latest order for another release, as its journal has it (agentina/updates/journal.py).

    What it runs is the heartbeat's ``version``.
    """

    #: Of the order; an id of the host's own where its operator gave it.
    id: Short
    #: The version that was ordered.
    version: Short
    #: A state of the journal (``requested`` … ``promoted``, ``rolling-back``, ``rolled-back``), or ``refused``: it was
    #: not begun.
    state: Short
    #: What its end says about the version; empty: it is not over.
    verdict: Literal["", "good", "bad", "inconclusive"] = ""
    #: Why it was rolled back (a reason of the journal, such as ``crashed``) or refused (a code of the error catalogue).
    reason: Short = ""
    detail: Detail = ""
    #: Host clock when it came to this state.
    at_ms: int = 0


class Heartbeat(_Message, frozen=True, kw_only=True):
    """``POST /v1/agent/heartbeat``: alive, and the renewal of every lease listed."""

    session: int
    tasks: Annotated[list[Held], msgspec.Meta(max_length=MAX_HELD)] = []
    host: HostFacts = HostFacts()
    draining: bool = False
    #: Why, for people; empty while not draining.
    drain_reason: Detail = ""
    #: The release it runs.
    version: Short = ""
    #: The latest update; None: there was none.
    update: UpdateReport | None = None
    #: When its owner lets rollouts change it (agentina/protocol/windows.py), and the only version he lets it run.
    update_window: Short = ""
    update_pin: Short = ""
    #: The settings of the control plane that hold, by their version; ``none``: none do; empty: the host takes none.
    configuration: Short = ""
    #: What became of the latest order for settings: ``refused``, ``on-trial``, ``promoted``, ``rolled-back``.
    configuration_report: UpdateReport | None = None


class HeartbeatAnswer(_Message, frozen=True, kw_only=True):
    """Answer to :class:`Heartbeat`."""

    server_time_ms: int
    #: Tasks whose lease now runs ``directives.lease_seconds`` from when the heartbeat was *sent*.
    renewed: list[str] = []
    stop: list[StopTask] = []
    forget: list[str] = []
    answers: list[Answer] = []
    directives: Directives = Directives()


# --- work ------------------------------------------------------------------------------------------------------------


class Poll(_Message, frozen=True, kw_only=True):
    """``POST /v1/agent/poll``: wait for work or orders. One at a time in a session, numbered from 1."""

    session: int
    number: Count
    #: Highest poll number whose answer is durably taken over; answers after it are sent again.
    acknowledged: Count = 0
    #: Tasks the host can start now; 0 still waits for orders.
    slots: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    #: Memory it can give to new tasks.
    memory_bytes: Count = 0
    #: How its gateway is; a host that is too old to tell gives jobs back that it cannot run.
    gateway: jobs.GatewayState = ""
    #: How long to hold the request when there is nothing.
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 50.0


class Origin(_Message, frozen=True, kw_only=True):
    """A checkpoint of an earlier task of the same job."""

    task_id: str
    artifact: ArtifactInfo


class Assignment(_Message, frozen=True, kw_only=True):
    """One task given to one agent in one session; signed with purpose ``assignment``."""

    task_id: str
    job_id: str
    #: The task's number within its job. Reports of an older epoch change nothing.
    epoch: int
    agent_id: str
    session: int
    #: The poll it answers: an answer replayed later is refused.
    poll: int
    organization: str
    issued_ms: int
    lease_seconds: float
    job: jobs.JobSpec
    #: Where the job goes on from; None: it begins.
    origin: Origin | None = None


class PollAnswer(_Message, frozen=True, kw_only=True):
    """Answer to :class:`Poll`."""

    number: int
    server_time_ms: int
    assignments: list[signing.Signed] = []
    stop: list[StopTask] = []
    forget: list[str] = []
    #: Tasks of which a checkpoint is wanted now; again with each answer until one that has them is acknowledged.
    checkpoint: list[str] = []
    directives: Directives = Directives()


# --- reports -----------------------------------------------------------------------------------------------------


class ArtifactInfo(_Message, frozen=True, kw_only=True):
    """One file a task left."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=240)]
    size: Count
    #: Hexadecimal.
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    #: ``file``: declared by the job; ``patch``: the changes made in the workspace; ``checkpoint``: what is needed to go
    #: on elsewhere (docs/explanation/checkpoints.md).
    kind: Literal["file", "patch", "checkpoint"] = "file"


class Usage(_Message, frozen=True, kw_only=True):
    """What a task used. ``None``: could not be measured here."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_operations: int | None = None
    processes_peak: int | None = None
    #: Bytes that came to the task through its host's gateway and that it sent there, heads of HTTP included.
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None


class Tokens(_Message, frozen=True, kw_only=True):
    """Tokens by their price."""

    #: Neither read from a cache nor written to one.
    input: Count = 0
    cached_input: Count = 0
    cache_write: Count = 0
    #: Reasoning included.
    output: Count = 0
    reasoning: Count = 0


class ToolUse(_Message, frozen=True, kw_only=True):
    """What became of the calls of one tool."""

    name: Short
    calls: Count = 0
    errors: Count = 0
    #: Calls that it was not allowed.
    denials: Count = 0


class AgentRun(_Message, frozen=True, kw_only=True):
    """What an AI agent's command line said of its run. Its own words: what it cost is what the gateway counted."""

    #: By which the session can be resumed.
    session_id: Short = ""
    model: Short = ""
    #: Of the command line.
    version: Short = ""
    #: Which program that was: the host's copy (``claude-code@2.1.329 sha256:…``), or a path and when it was changed.
    program: Short = ""
    #: Answers of the model; None: not told.
    turns: Count | None = None
    tool_calls: Count = 0
    tool_errors: Count = 0
    #: Tools it was not allowed to use.
    denials: Count = 0
    #: The same by tool, of the first ones it used; what is missing here is of other tools, or nobody told which.
    tools: Annotated[list[ToolUse], msgspec.Meta(max_length=MAX_TOOLS)] = []
    #: Calls of the model made again.
    retries: Count = 0
    tokens: Tokens | None = None
    #: Tokens and cost are those of the session from its beginning: with those of earlier runs, if it was resumed.
    tokens_of_session: bool = False
    cost_usd: Annotated[float, msgspec.Meta(ge=0)] | None = None
    #: How much of the model's context was filled last, and how much there is, in tokens: by the gateway's account where
    #: the command line did not say.
    context_tokens: Count | None = None
    context_window: Count | None = None
    #: The tool it waits for, with the beginning of its arguments; empty: none.
    doing: Short = ""
    #: What it said last.
    answer: Annotated[str, msgspec.Meta(max_length=MAX_ANSWER)] = ""
    answer_truncated: bool = False
    #: It said that it had finished, well or not.
    finished: bool = False
    #: It said that it had not succeeded.
    failed: bool = False
    #: Why, as a word (``max-turns``, ``api-402``) and in its own words; of a run without an end its last complaint.
    error_kind: Short = ""
    error: Detail = ""


class Outcome(_Message, frozen=True, kw_only=True):
    """How a task ended."""

    state: State
    reason: Reason
    #: A sentence with the particulars.
    detail: Detail = ""
    exit_code: int | None = None
    #: Name of the signal that ended it, for example ``SIGKILL``.
    signal: Short | None = None
    #: ``none``, ``partial`` (a child was killed, the task lived on) or ``full``.
    oom: Literal["none", "partial", "full"] = "none"
    usage: Usage = Usage()
    #: Output bytes kept, all of them uploaded before this is reported.
    output_bytes: Count = 0
    #: The task wrote more than was kept.
    output_truncated: bool = False
    artifacts: Annotated[list[ArtifactInfo], msgspec.Meta(max_length=1000)] = []
    #: Commit the workspace was made from.
    commit: Short = ""
    #: Paths of the repository that its patch changes, the first ones.
    changed: Annotated[list[Annotated[str, msgspec.Meta(max_length=4096)]], msgspec.Meta(max_length=MAX_CHANGED)] = []
    #: Code of the error catalogue when an error of agentina's ended it.
    error_code: Short = ""
    error_context: dict[str, Any] = {}
    #: Of tasks whose runner reads what an AI agent prints.
    agent: AgentRun | None = None
    #: What it used of models, as its host's gateway counted it.
    models: ModelRows = []
    #: Hosts with ports that it reached through the gateway, the first ones.
    hosts: Annotated[list[Annotated[str, msgspec.Meta(max_length=512)]], msgspec.Meta(max_length=jobs.MAX_REACHED)] = []


class Anomaly(_Message, frozen=True, kw_only=True):
    """A finding that stays open until somebody resolves it (agentina/protocol/anomalies.py)."""

    #: Names this report of it; the same id of the same agent is applied once.
    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
    #: One of ``anomalies.KINDS``.
    kind: Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9-]{0,31}$")]
    #: Of the error catalogue, where there is one.
    code: Annotated[str, msgspec.Meta(pattern="^[A-Z][A-Z0-9_]{0,63}$")]
    #: What is wrong, in one line. Reports with the same one, but for ids and numbers in it, are the same anomaly.
    summary: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SUMMARY)]
    #: What shows it, by name: excerpts, values. No secrets.
    evidence: Annotated[
        dict[
            Annotated[str, msgspec.Meta(max_length=MAX_EVIDENCE_NAME)],
            Annotated[str, msgspec.Meta(max_length=MAX_EVIDENCE)],
        ],
        msgspec.Meta(max_length=MAX_EVIDENCE_ENTRIES),
    ] = {}
    #: How often it happened since it was last reported.
    count: Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)] = 1
    #: Host clock at the first of them; 0: as the report's.
    first_at_ms: int = 0
    #: The release it is about; empty: none in particular.
    release: Short = ""


class Report(_Message, frozen=True, kw_only=True):
    """One numbered fact, most of them about a task. Sent in order, acknowledged by number, applied once."""

    number: Count
    #: Host clock when it happened.
    at_ms: int
    #: Empty: an anomaly that is not about a task.
    task_id: Short
    #: ``accepted`` (durably held), ``running``, ``finishing``, ``finished`` (with outcome), ``returned`` (provably
    #: never started; give it to another), ``note`` (text for the timeline), ``anomaly`` (with anomaly), ``progress``
    #: (with progress).
    kind: Literal["accepted", "running", "finishing", "finished", "returned", "note", "anomaly", "progress"]
    outcome: Outcome | None = None
    anomaly: Anomaly | None = None
    progress: Progress | None = None
    #: ``running``: process id on the host; ``returned`` and ``note``: the reason in words.
    detail: Detail = ""
    pid: int | None = None


class Reports(_Message, frozen=True, kw_only=True):
    """``POST /v1/agent/reports``."""

    session: int
    stream: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    reports: Annotated[list[Report], msgspec.Meta(min_length=1, max_length=MAX_REPORTS)]


class ReportsApplied(_Message, frozen=True, kw_only=True):
    """Answer: every report up to this number is durable at the control plane."""

    applied: int
    #: Tasks completely known there: the host may delete them.
    forget: list[str] = []


class PieceStored(_Message, frozen=True, kw_only=True):
    """Answer to an upload of output or artifact bytes: durable up to this offset."""

    offset: int
    complete: bool = False


class ArtifactBegin(_Message, frozen=True, kw_only=True):
    """``POST /v1/agent/tasks/{task}/artifacts``: announce one; the answer tells the offset to go on from."""

    session: int
    artifact: ArtifactInfo

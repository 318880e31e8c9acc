"""The job format: what a person submits, validated once, with errors that name the path.

``parse_job`` takes what YAML or JSON gave and returns a :class:`JobSpec`; inside the product only the struct is used.
The same struct, encoded again, is accepted by ``parse_job``, so it is also what is stored and sent to hosts.
``schema()`` is the published JSON Schema. Sizes are bytes and durations seconds once parsed; people may write ``2GiB``
and ``1h30m``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from agentina import errors
from agentina.protocol import inputs, names, units

#: Largest job document, in bytes.
MAX_JOB_BYTES: Final = 1 << 20
#: Bytes of memory that a job may be limited to at least.
LEAST_MEMORY: Final = 1 << 20

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
Text = Annotated[str, msgspec.Meta(max_length=65_536)]
#: Most hosts that are told of as reached by one task.
MAX_REACHED: Final = 100
Patterns = Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]], msgspec.Meta(max_length=256)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]

#: Named resources: CPUs and bytes of memory (DESIGN: profile).
PROFILES: Final[dict[str, tuple[float, int]]] = {
    "lightweight": (0.5, 1 << 30),
    "standard": (1.0, 2 << 30),
    "compute": (2.0, 4 << 30),
}

#: What a job needs its host's gateway for: nothing; hosts in its scope, which are held only where there is one; a
#: budget, which it cannot have without.
GatewayNeed = Literal["", "hosts", "budget"]
#: How a host's gateway is: usable (or its host does not say); there is none; it cannot be used, though there ought to
#: be one.
GatewayState = Literal["", "none", "unusable"]
#: Outcomes a retry policy may name. ``lost`` includes a restarted host.
RetryOn = Literal["failed", "timed-out", "out-of-memory", "lost", "refused"]


class _Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything a person writes: unknown keys are errors."""


class Command(_Spec, frozen=True, kw_only=True):
    """A process to start: either ``argv`` or ``script``, never both."""

    #: Program and arguments, started without a shell.
    argv: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=4096)] | None = None
    #: Text for ``/bin/sh -e``.
    script: Annotated[str, msgspec.Meta(min_length=1, max_length=262_144)] | None = None


class Secret(_Spec, frozen=True, kw_only=True):
    """An environment value that is also masked in the job's output."""

    secret: Text


class McpServer(_Spec, frozen=True, kw_only=True):
    """A server of tools for an AI agent (Model Context Protocol): started by it with ``command``, or at ``url``."""

    #: Program and arguments; it speaks on stdin and stdout.
    command: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=256)] | None = None
    #: Address of one that speaks HTTP.
    url: Annotated[str, msgspec.Meta(pattern="^https?://", max_length=2048)] | None = None
    #: Variables for ``command``.
    environment: Annotated[dict[str, Text | Secret], msgspec.Meta(max_length=256)] = {}
    #: Headers of every request to ``url``.
    headers: Annotated[dict[str, Text | Secret], msgspec.Meta(max_length=64)] = {}


class Payload(Command, frozen=True, kw_only=True):
    """What the runner starts. ``command`` takes ``argv`` or ``script``; runners of AI agents take the other keys."""

    #: What the AI agent is to do.
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=262_144)] | None = None
    #: A file of the workspace that says it, instead of ``prompt``.
    prompt_file: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | None = None
    #: Added to the agent's own instructions.
    system_prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=262_144)] | None = None
    #: As the agent's command line names it; absent: its own choice.
    model: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:/@\\[\\]-]{0,199}$")] | None = None
    #: Most answers of the model; more ends the task. Not for ``codex`` and ``opencode``, which cannot be told.
    max_turns: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    #: The tools it may use, as its command line names them; absent: all. Not for ``codex`` and ``opencode``.
    allowed_tools: (
        Annotated[
            list[Annotated[str, msgspec.Meta(pattern="^[^,\\s][^,\\n]*$", max_length=500)]],
            msgspec.Meta(max_length=256),
        ]
        | None
    ) = None
    #: Id of a session to go on with; its files must be where the agent looks for them.
    resume: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")] | None = None
    #: Servers of further tools, by name.
    mcp_servers: Annotated[
        dict[Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")], McpServer], msgspec.Meta(max_length=64)
    ] = {}
    #: Give it the task's verbs (`agentina task`) as tools, by a server named ``agentina``.
    task_tools: bool = True


class Workspace(_Spec, frozen=True, kw_only=True):
    """Where the task works. Absent: an empty directory."""

    #: Repository address as git understands it (https, ssh, file, or an absolute path on the host).
    git: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)] | None = None
    #: Branch, tag or commit.
    ref: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "HEAD"


class Resources(_Spec, frozen=True, kw_only=True):
    """What the task gets at most. A named profile, with single values overriding it."""

    profile: Literal["lightweight", "standard", "compute"] = "standard"
    #: Bytes; 0 means the profile's.
    memory: Bytes = 0
    #: CPUs; 0 means the profile's.
    cpu: Annotated[float, msgspec.Meta(ge=0, le=1024)] = 0
    #: Processes and threads at once.
    pids: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    #: Bytes the workspace may take.
    disk: Bytes = 20 << 30


class Limits(_Spec, frozen=True, kw_only=True):
    """Bounds whose crossing ends the task."""

    #: Seconds from start to forced end.
    timeout: Annotated[float, msgspec.Meta(gt=0, le=2_592_000)] = 3600.0
    #: Bytes of output kept; more ends the task.
    output: Bytes = 64 << 20
    #: Seconds between SIGTERM and SIGKILL.
    grace: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    #: Bytes of all artifacts together.
    artifacts: Bytes = 1 << 30


class Scope(_Spec, frozen=True, kw_only=True):
    """What the job may touch. Enforced as far as the executor can; `agentina status` says how far."""

    #: Of the repository, the paths it will change: jobs whose paths meet do not run at the same time
    #: (docs/explanation/path-claims.md).
    paths: Patterns = []
    #: What to do when another job changes some of these paths: ``wait`` for its end, or only ``warn``.
    overlap: Literal["wait", "warn"] = "wait"
    commands: Patterns = []
    hosts: Patterns = []


class Budget(_Spec, frozen=True, kw_only=True):
    """What the task may use of models, held by the host's gateway (docs/explanation/gateway.md). None: no limit."""

    #: Tokens, without those read from the provider's cache.
    tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] | None = None
    #: US dollars.
    cost: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    #: Tools the models may ask for.
    tool_calls: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] | None = None
    #: Seconds since the task's start after which no call is let through.
    duration: Seconds | None = None
    #: At the limit: ``stop`` refuses further calls, ``park`` holds a streamed call until the budget is raised.
    on_exhausted: Literal["stop", "park"] = "stop"


class Health(_Spec, frozen=True, kw_only=True):
    """When a run counts as unwell, and what is done about it (docs/explanation/health.md). 0 turns a rule off.

    Watched over are AI agents, and other jobs that have this key.
    """

    #: Seconds without a byte of output, processor time, or a byte through the gateway.
    stuck_after: Seconds = 1800.0
    #: Calls of tools that repeat with the same results, or fail alike, in a row; ten times as many where they wait.
    loop_after: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 8
    #: Filled share of the model's context.
    context_at: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    #: Tokens that the model's context holds; absent: as the agent's command line says, else the host's table of prices.
    context_window: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    #: Seconds for which its process may stay after its result, before it is ended; absent: the host's `agent_linger`.
    hung_after: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    #: Once it has gone on for twice as long: only ``report`` it; ``nudge`` the agent with its model's next call;
    #: ``stop`` the task; ``retry``: stop it and, within ``retry.max_attempts``, begin afresh.
    act: Literal["report", "nudge", "stop", "retry"] = "report"


class Checkpoint(_Spec, frozen=True, kw_only=True):
    """Checkpoints of a task, from which the job goes on elsewhere (docs/explanation/checkpoints.md).

    AI agents whose sessions can be resumed have them without this key. With it any job has, and has to know by itself
    how to go on in a workspace that it finds as it left it (``AGENTINA_RESUMED_FROM`` is set then).
    """

    #: Seconds between those that are taken while the task runs, by executors that can; 0: none.
    every: Seconds = 600.0
    #: Patterns (gitignore(5)) of files to take along though git ignores them.
    ignored: Annotated[
        list[Annotated[str, msgspec.Meta(pattern="^[^\\n\\x00]+$", max_length=1024)]], msgspec.Meta(max_length=256)
    ] = []
    #: Bytes of one checkpoint; what is larger is not taken.
    limit: Bytes = 1 << 30


class Retry(_Spec, frozen=True, kw_only=True):
    """When another attempt is made. The default repeats only what the infrastructure lost."""

    #: Started attempts in all. Attempts that never started do not count.
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    on: list[RetryOn] = msgspec.field(default_factory=lambda: ["lost"])
    #: Seconds before the second attempt; doubles each time.
    backoff: Seconds = 10.0
    #: Seconds the doubling stops at.
    max_backoff: Seconds = 3600.0


class JobSpec(_Spec, frozen=True, kw_only=True):
    """What somebody asks for."""

    name: Name
    #: Only agents of this role; absent: any.
    role: str | None = None
    #: Labels the agent must have.
    labels: dict[str, str] = {}
    #: ``command``, ``claude-code``, ``codex``, ``opencode``, ``gemini``, or one that hosts describe in a file. With
    #: ``@VERSION`` only hosts that keep a copy of this version of its program, and that copy.
    runner: Annotated[str, msgspec.Meta(pattern=names.RUNNER_PATTERN)] = "command"
    #: What the runner starts, see below.
    payload: Payload
    workspace: Workspace = Workspace()
    resources: Resources = Resources()
    limits: Limits = Limits()
    scope: Scope = Scope()
    #: Absent: the host's gateway is not needed for the models' sake.
    budget: Budget | None = None
    #: Ids of jobs that must have succeeded first.
    needs: Annotated[list[str], msgspec.Meta(max_length=256)] = []
    retry: Retry = Retry()
    health: Health | None = None
    #: Absent: AI agents only.
    checkpoint: Checkpoint | None = None
    #: 0 to 100; higher runs first.
    priority: Annotated[int, msgspec.Meta(ge=0, le=100)] = 50
    #: Glob patterns, relative to the workspace, of files to keep. A new file that one matches is not in the patch.
    artifacts: Patterns = []
    #: Variables for the process. Values are never shown; those marked ``{secret: …}`` or named like one are masked.
    environment: dict[str, Text | Secret] = {}
    #: A command that must exit 0 in the same workspace for the task to count as succeeded.
    verify: Command | None = None

    @property
    def runner_name(self) -> str:
        """The runner without the version that is asked for."""
        return self.runner.partition("@")[0]

    @property
    def gateway(self) -> GatewayNeed:
        """What it needs its host's gateway for."""
        if self.budget is not None:
            return "budget"
        return "hosts" if self.scope.hosts else ""

    @property
    def memory_bytes(self) -> int:
        """The memory limit: the job's own, or its profile's."""
        return self.resources.memory or PROFILES[self.resources.profile][1]

    @property
    def cpus(self) -> float:
        """The CPU limit: the job's own, or its profile's."""
        return self.resources.cpu or PROFILES[self.resources.profile][0]


#: Keys of a payload by runner; a runner that only hosts know takes all that are for AI agents.
_AGENT_KEYS: Final = tuple(sorted(set(Payload.__struct_fields__) - set(Command.__struct_fields__)))
_UNBOUND_KEYS: Final = tuple(key for key in _AGENT_KEYS if key not in {"max_turns", "allowed_tools"})
PAYLOAD_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "command": Command.__struct_fields__,
    "claude-code": _AGENT_KEYS,
    "codex": _UNBOUND_KEYS,
    "gemini": _AGENT_KEYS,
    "opencode": _UNBOUND_KEYS,
}

_NO_PAYLOAD: Final = Payload()

#: What people may write as text, by section and key.
_MEASURES: Final[Mapping[str, inputs.Measures]] = {
    "resources": {"memory": units.parse_size, "disk": units.parse_size},
    "limits": {
        "output": units.parse_size, "artifacts": units.parse_size,
        "timeout": units.parse_duration, "grace": units.parse_duration,
    },
    "retry": {"backoff": units.parse_duration, "max_backoff": units.parse_duration},
    "budget": {"duration": units.parse_duration},
    "health": {"stuck_after": units.parse_duration},
    "checkpoint": {"limit": units.parse_size, "every": units.parse_duration},
}  # fmt: skip
_EXAMPLES: Final[Mapping[Callable[[str], float], str]] = {
    units.parse_size: "a size such as 512MiB",
    units.parse_duration: "a duration such as 1h30m",
}
_SECRET_NAME: Final = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)($|_)", re.IGNORECASE)
_HIDDEN: Final = "(hidden)"
#: Shorter secrets would mask ordinary text.
_MIN_MASKED: Final = 6


def parse_job(document: object) -> JobSpec:
    """Validate a decoded YAML or JSON document.

    Raises:
        AgentinaError: ``INPUT_INVALID``, ``INPUT_UNKNOWN_KEY`` (naming the path and a near miss) or ``NAME_INVALID``.

    """
    spec = inputs.convert(_with_plain_numbers(document), JobSpec, "job")
    _check_payload(spec)
    if spec.verify is not None:
        _check_command(spec.verify, "job.verify")
    _check_names(spec)
    _check_workspace(spec.workspace)
    _check_memory(spec.resources.memory)
    _check_artifact_patterns(spec.artifacts)
    _check_claims(spec)
    return spec


def environment_values(spec: JobSpec) -> dict[str, str]:
    """The process environment a job asks for, in plain values."""
    return plain_values(spec.environment)


def plain_values(values: dict[str, str | Secret]) -> dict[str, str]:
    """Values without their marks."""
    return {key: value.secret if isinstance(value, Secret) else value for key, value in values.items()}


def masked_values(spec: JobSpec) -> list[str]:
    """The values that must not appear in output: marked as secret, or named like one. Longest first."""
    named = [spec.environment]
    for server in spec.payload.mcp_servers.values():
        named += [server.environment, server.headers]
    chosen = (
        value.secret if isinstance(value, Secret) else value
        for values in named
        for key, value in values.items()
        if isinstance(value, Secret) or _SECRET_NAME.search(key)
    )
    return sorted({value for value in chosen if len(value) >= _MIN_MASKED}, key=len, reverse=True)


def without_values(spec: JobSpec) -> JobSpec:
    """The same job with the values of every environment and header hidden, for API answers and pages."""
    hidden = msgspec.structs.replace(spec, environment=dict.fromkeys(spec.environment, _HIDDEN))
    if not spec.payload.mcp_servers:
        return hidden
    servers = {
        name: msgspec.structs.replace(
            server,
            environment=dict.fromkeys(server.environment, _HIDDEN),
            headers=dict.fromkeys(server.headers, _HIDDEN),
        )
        for name, server in spec.payload.mcp_servers.items()
    }
    return msgspec.structs.replace(hidden, payload=msgspec.structs.replace(spec.payload, mcp_servers=servers))


def schema() -> dict[str, Any]:
    """The JSON Schema of a job document, for editors; ``parse_job`` checks a little more (names, exclusive keys)."""
    document = msgspec.json.schema(JobSpec)
    for section, measures in _MEASURES.items():
        properties = document["$defs"][section.capitalize()]["properties"]
        for key, parse in measures.items():
            default = properties[key].pop("default")
            number = {"anyOf": [properties[key], {"type": "string"}]}
            properties[key] = {**number, "default": default, "description": f"a number, or {_EXAMPLES[parse]}"}
    document["$defs"]["JobSpec"]["allOf"] = [
        {
            # A condition on what is absent holds: that is right for the default alone.
            "if": {
                "properties": {"runner": {"pattern": f"^{runner}(@|$)"}},
                **({} if runner == "command" else {"required": ["runner"]}),
            },
            "then": {"properties": {"payload": {"propertyNames": {"enum": list(keys)}}}},
        }
        for runner, keys in PAYLOAD_KEYS.items()
    ]
    return document


def _with_plain_numbers(document: object) -> object:
    """Replace sizes and durations written as text by numbers, so that the struct sees one form."""
    if not isinstance(document, dict):
        return document
    plain = dict(document)
    for section, measures in _MEASURES.items():
        if section in plain:
            plain[section] = inputs.measured(plain[section], measures, f"job.{section}")
    return plain


def _check_payload(spec: JobSpec) -> None:
    payload = spec.payload
    if spec.runner_name == "command" != spec.runner:
        raise errors.INPUT_INVALID(where="job.runner", problem="the runner 'command' has no versions")
    allowed = PAYLOAD_KEYS.get(spec.runner_name, _AGENT_KEYS)
    for key in payload.__struct_fields__:
        if key not in allowed and getattr(payload, key) != getattr(_NO_PAYLOAD, key):
            problem = f"runner {spec.runner_name!r} has no such key; it takes {', '.join(allowed)}"
            raise errors.INPUT_INVALID(where=f"job.payload.{key}", problem=problem)
    if spec.runner == "command":
        _check_command(payload, "job.payload")
        return
    if (payload.prompt is None) == (payload.prompt_file is None):
        raise errors.INPUT_INVALID(where="job.payload", problem="expected exactly one of prompt and prompt_file")
    if payload.prompt_file is not None:
        _check_inside(payload.prompt_file, "job.payload.prompt_file", "path")
    for name, server in payload.mcp_servers.items():
        _check_server(server, f"job.payload.mcp_servers.{name}")


def _check_server(server: McpServer, where: str) -> None:
    if (server.command is None) == (server.url is None):
        raise errors.INPUT_INVALID(where=where, problem="expected exactly one of command and url")
    if (server.environment and server.command is None) or (server.headers and server.url is None):
        raise errors.INPUT_INVALID(where=where, problem="environment belongs to a command, and headers to a url")
    _check_environment(server.environment, f"{where}.environment")
    for key, value in plain_values(server.headers).items():
        if not (key.isascii() and key.isprintable() and value.isprintable()) or ":" in key:
            raise errors.INPUT_INVALID(where=f"{where}.headers", problem=f"{key[:80]!r} is no header that can be sent")
    if any("\0" in part for part in server.command or ()):
        raise errors.INPUT_INVALID(where=where, problem="a NUL character cannot be passed to a process")


def _check_command(command: Command, where: str) -> None:
    if (command.argv is None) == (command.script is None):
        raise errors.INPUT_INVALID(where=where, problem="expected exactly one of argv and script")
    if any("\0" in part for part in (command.argv or [command.script or ""])):
        raise errors.INPUT_INVALID(where=where, problem="a NUL character cannot be passed to a process")


def _check_names(spec: JobSpec) -> None:
    if not spec.name.isprintable():
        raise errors.INPUT_INVALID(where="job.name", problem="control characters are not allowed")
    if spec.role is not None:
        names.check_role(spec.role)
    for key, value in spec.labels.items():
        names.check_label(key, value)
    _check_environment(spec.environment, "job.environment")


def _check_environment(values: dict[str, str | Secret], where: str) -> None:
    for key, value in plain_values(values).items():
        names.check_environment(key)
        if "\0" in value:
            raise errors.INPUT_INVALID(where=f"{where}.{key}", problem="a NUL character is not allowed")


def _check_workspace(workspace: Workspace) -> None:
    """Refuse what git would read as an option or as a command to run (ext:: transports)."""
    for key, value in (("git", workspace.git or "x"), ("ref", workspace.ref)):
        if value.startswith("-") or not value.isprintable() or (key == "git" and "::" in value.split("/")[0]):
            raise errors.INPUT_INVALID(where=f"job.workspace.{key}", problem=f"{value[:80]!r} is not accepted")


def _check_memory(memory: int) -> None:
    """Refuse what is a slip: a number without its unit."""
    if 0 < memory < LEAST_MEMORY:
        problem = f"{memory} bytes are less than any program takes; expected a size with its unit, such as 512M or 2GiB"
        raise errors.INPUT_INVALID(where="job.resources.memory", problem=problem)


def _check_artifact_patterns(patterns: list[str]) -> None:
    for index, pattern in enumerate(patterns):
        _check_inside(pattern, f"job.artifacts[{index}]", "pattern")


def _check_claims(spec: JobSpec) -> None:
    """Refuse paths that claim nothing though they look as if they did."""
    for index, path in enumerate(spec.scope.paths):
        _check_inside(path, f"job.scope.paths[{index}]", "path")
    if spec.scope.paths and spec.workspace.git is None:
        problem = "paths are those of a repository, and the job has none (`workspace.git`)"
        raise errors.INPUT_INVALID(where="job.scope.paths", problem=problem)


def _check_inside(path: str, where: str, what: str) -> None:
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        problem = f"{path[:80]!r} leaves the workspace; expected a relative {what} without '..'"
        raise errors.INPUT_INVALID(where=where, problem=problem)

"""The error catalogue: every error a person or a program can meet, with its code, cause and remedy.

One exception class carries any entry. An entry is raised by calling it::

    raise errors.TOKEN_USED(used_at="2026-11-21T10:00:00Z", host="build-3")

The same code travels on the wire (:func:`to_wire`, :func:`from_wire`), in ``--json`` and in logs, and
docs/troubleshooting.md is generated from :data:`CATALOGUE`. Codes are stable: they are never renamed or reused.

Rules: the message says what was wrong, where, what was found and what was expected; the remedy says what to do next.
Context values are shown to people and sent over the network, so a secret never goes into one.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


class Exit(enum.IntEnum):
    """Exit codes of every ``agentina`` command (the one place that names them)."""

    #: It worked; for ``status`` and ``doctor``: healthy.
    OK = 0
    #: The thing asked for failed: a followed job did not succeed, a check found a fault.
    FAILED = 1
    #: The command line or an input file is wrong (the convention of click and argparse).
    USAGE = 2
    #: Not allowed: a token, licence, signature or policy refuses it.
    REFUSED = 3
    #: The other side cannot be reached or is not ready; trying again later is sensible.
    UNAVAILABLE = 4
    #: The named thing does not exist.
    NOT_FOUND = 5
    #: It conflicts with the present state of things.
    CONFLICT = 6
    #: This host's own state is damaged or its resources are used up.
    STATE = 7
    #: A fault of agentina itself.
    INTERNAL = 70
    #: Interrupted by the person (128 + SIGINT).
    INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One kind of error. Calling it makes the exception to raise."""

    #: Stable name in upper snake case.
    code: str
    #: HTTP status when the control plane answers with it.
    status: int
    #: Exit code of a command that ends with it.
    exit: Exit
    #: What happened, with ``{placeholders}`` filled from the context.
    message: str
    #: Why it usually happens.
    cause: str
    #: What the reader does about it.
    remedy: str

    def __call__(self, **context: Any) -> AgentinaError:
        """Make the exception for this entry; ``context`` fills the message."""
        return AgentinaError(self, context)


class AgentinaError(Exception):
    """An error from the catalogue: ``entry`` says which, ``context`` the particulars."""

    def __init__(self, entry: Entry, context: Mapping[str, Any] | None = None, text: str | None = None) -> None:
        self.entry = entry
        self.context: dict[str, Any] = dict(context or {})
        self._text = text
        super().__init__(entry.code)

    @property
    def code(self) -> str:
        """The stable code."""
        return self.entry.code

    @property
    def message(self) -> str:
        """One sentence for a person."""
        text = self._text or self.entry.message.format_map(_Visible(self.context))
        # What others say, git or systemd, may end with the full stop that the sentence has already.
        return text[:-1] if text.endswith("..") and not text.endswith("...") else text

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.entry.remedy.format_map(_Visible(self.context))

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def __repr__(self) -> str:
        return f"AgentinaError({self.code}, {self.context!r})"


class _Visible(dict[str, Any]):
    """Shows a placeholder nobody filled instead of failing while reporting a failure."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def to_wire(error: AgentinaError) -> dict[str, Any]:
    """The body of an error answer: ``{"error": {code, message, remedy, context}}``."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "remedy": error.remedy,
            "context": {key: _plain(value) for key, value in error.context.items()},
        }
    }


def from_wire(body: object, *, status: int) -> AgentinaError:
    """The error a peer answered with.

    A code this version does not know keeps the peer's words, so an old client still tells a person what a newer
    server meant. A body that is no error answer at all (a proxy's page, garbage) becomes ``ANSWER_UNREADABLE``.
    """
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict) or not isinstance(detail.get("code"), str):
        return ANSWER_UNREADABLE(what=f"HTTP status {status} without an agentina error body")
    context = detail.get("context")
    context = context if isinstance(context, dict) else {}
    entry = CATALOGUE.get(detail["code"])
    if entry is not None:
        return AgentinaError(entry, context, text=str(detail.get("message") or "") or None)
    exit_code = Exit.UNAVAILABLE if status >= 500 else Exit.FAILED  # noqa: PLR2004 - RFC 9110: 5xx is the server's fault
    unknown = Entry(
        code=detail["code"],
        status=status,
        exit=exit_code,
        message=str(detail.get("message") or "The peer refused with a code this version does not know."),
        cause="The peer runs a newer version.",
        remedy=str(detail.get("remedy") or "Upgrade this side."),
    )
    return AgentinaError(unknown, context, text=unknown.message)


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list | dict) or value is None else str(value)


CATALOGUE: dict[str, Entry] = {}


def _entry(code: str, status: int, exit_code: Exit, /, *, message: str, cause: str, remedy: str) -> Entry:
    entry = Entry(code=code, status=status, exit=exit_code, message=message, cause=cause, remedy=remedy)
    assert code not in CATALOGUE, code
    CATALOGUE[code] = entry
    return entry


# --- input: what a person or a program wrote ---------------------------------------------------------------------

INPUT_INVALID = _entry(
    "INPUT_INVALID", 400, Exit.USAGE,
    message="{where}: {problem}.",
    cause="A value has the wrong type, form or size.",
    remedy="Correct the value named in the message and try again.",
)  # fmt: skip
INPUT_UNKNOWN_KEY = _entry(
    "INPUT_UNKNOWN_KEY", 400, Exit.USAGE,
    message="{where}: unknown key {key!r}{suggestion}.",
    cause="A key is misspelt, or belongs to a newer version.",
    remedy="Use one of the known keys: {known}.",
)  # fmt: skip
INPUT_UNREADABLE = _entry(
    "INPUT_UNREADABLE", 400, Exit.USAGE,
    message="{where} cannot be read: {problem}.",
    cause="The content is damaged, is not text, or is not valid YAML or JSON.",
    remedy="Correct the content at the place named in the message.",
)  # fmt: skip
FILE_UNREADABLE = _entry(
    "FILE_UNREADABLE", 400, Exit.USAGE,
    message="{where} cannot be read: {problem}.",
    cause="The file does not exist, is a directory, or belongs to somebody else.",
    remedy="Check the path, and that this user may read it (`ls -l`).",
)  # fmt: skip
OUTPUT_UNWRITABLE = _entry(
    "OUTPUT_UNWRITABLE", 507, Exit.STATE,
    message="The answer cannot be written to stdout: {problem}.",
    cause="stdout leads to a full disk, or to a device that fails. What was asked for may be done all the same.",
    remedy="Make room or choose another file, and ask again; before repeating a change look at what became of it.",
)  # fmt: skip
INPUT_TOO_LARGE = _entry(
    "INPUT_TOO_LARGE", 413, Exit.USAGE,
    message="{where} has {size} bytes; at most {limit} are accepted.",
    cause="Every input is bounded so that no sender can exhaust memory or disk.",
    remedy="Send less: put large data into the workspace's repository or an artifact.",
)  # fmt: skip
NAME_INVALID = _entry(
    "NAME_INVALID", 400, Exit.USAGE,
    message="{what} {value!r} is not valid: {rule}.",
    cause="Names become file and unit names, so their characters are limited.",
    remedy="Choose a name that follows the rule in the message.",
)  # fmt: skip
USAGE = _entry(
    "USAGE", 400, Exit.USAGE,
    message="{problem}",
    cause="The command line is incomplete or contradictory.",
    remedy="See the command's --help.",
)  # fmt: skip

# --- identity, tokens, licences -----------------------------------------------------------------------------------

TOKEN_UNKNOWN = _entry(
    "TOKEN_UNKNOWN", 403, Exit.REFUSED,
    message="This activation token is not known to the control plane.",
    cause="The token is mistyped, was made by another control plane, or was deleted.",
    remedy="Mint a new one with `agentina token create` and check that --control-plane names the right server.",
)  # fmt: skip
TOKEN_USED = _entry(
    "TOKEN_USED", 409, Exit.REFUSED,
    message="This activation token was already used on {used_at} by host {host}.",
    cause="A token activates exactly one agent; the first machine to redeem it owns it.",
    remedy="Mint one token for each agent with `agentina token create`. If you did not expect that host, "
    "quarantine its agent with `agentina agent quarantine` and look at `agentina audit list`.",
)  # fmt: skip
TOKEN_EXPIRED = _entry(
    "TOKEN_EXPIRED", 403, Exit.REFUSED,
    message="This activation token expired on {expired_at}.",
    cause="Tokens live 14 days unless another time was asked for.",
    remedy="Mint a new one with `agentina token create`.",
)  # fmt: skip
TOKEN_REVOKED = _entry(
    "TOKEN_REVOKED", 403, Exit.REFUSED,
    message="This activation token was revoked on {revoked_at}.",
    cause="An operator revoked it with `agentina token revoke`.",
    remedy="Ask that operator, or mint a new one with `agentina token create`.",
)  # fmt: skip
LICENSE_AGENTS_EXHAUSTED = _entry(
    "LICENSE_AGENTS_EXHAUSTED", 403, Exit.REFUSED,
    message="Organization {organization} has {agents} agents; its license allows {max_agents}.",
    cause="Each activated agent counts until it is removed.",
    remedy="Remove an agent that is gone with `agentina agent remove`, or raise the organization's limit.",
)  # fmt: skip
LICENSE_EXPIRED = _entry(
    "LICENSE_EXPIRED", 403, Exit.REFUSED,
    message="The license of this agent expired on {expired_at}.",
    cause="The control plane renews a license at heartbeats; this one was not renewed in time.",
    remedy="Check that the control plane is reachable (`agentina doctor`); it renews by itself at the next heartbeat.",
)  # fmt: skip
LICENSE_INVALID = _entry(
    "LICENSE_INVALID", 403, Exit.REFUSED,
    message="The license on this host does not verify: {problem}.",
    cause="The file was changed, belongs to another agent, or is signed by a key that is not pinned here.",
    remedy="Run `agentina uninstall --purge` and install again with a new token.",
)  # fmt: skip
GRACE_EXHAUSTED = _entry(
    "GRACE_EXHAUSTED", 403, Exit.REFUSED,
    message="The control plane was away for {hours} h; the license allows {grace_hours} h. No new work is taken.",
    cause="Offline grace is limited by the license. Running tasks go on.",
    remedy="Restore the connection to the control plane; work resumes with the first heartbeat.",
)  # fmt: skip
AUTH_REQUIRED = _entry(
    "AUTH_REQUIRED", 401, Exit.REFUSED,
    message="This request needs an operator token.",
    cause="No token was sent, or it is malformed.",
    remedy="Run `agentina login`, or set AGENTINA_API_TOKEN or AGENTINA_API_TOKEN_FILE.",
)  # fmt: skip
AUTH_INVALID = _entry(
    "AUTH_INVALID", 401, Exit.REFUSED,
    message="The operator token is not valid.",
    cause="It is mistyped, belongs to another control plane, or was revoked.",
    remedy="Run `agentina login` with a current token. An administrator makes one (`agentina operator renew`); where"
    " none has one that holds, `agentina control-plane recover` does, on the control plane's machine.",
)  # fmt: skip
ASSERTION_INVALID = _entry(
    "ASSERTION_INVALID", 401, Exit.REFUSED,
    message="The agent's assertion is not valid: {problem}.",
    cause="It is malformed, forged, meant for another control plane, or signed with another key.",
    remedy="If this repeats, reinstall the agent: its identity does not match the control plane's record.",
)  # fmt: skip
ASSERTION_EXPIRED = _entry(
    "ASSERTION_EXPIRED", 401, Exit.UNAVAILABLE,
    message="The agent's assertion is outside its time; the control plane's clock reads {server_time_ms} ms.",
    cause="The clocks of host and control plane differ. The agent adjusts to the control plane's time by itself.",
    remedy="Correct the host's clock (`timedatectl`); nothing else is needed.",
)  # fmt: skip
AGENT_UNKNOWN = _entry(
    "AGENT_UNKNOWN", 403, Exit.REFUSED,
    message="The control plane does not know this agent.",
    cause="It was removed with `agentina agent remove`, or the control plane's data is another one.",
    remedy="Run `agentina uninstall --purge` and install again with a new token.",
)  # fmt: skip
AGENT_AMBIGUOUS = _entry(
    "AGENT_AMBIGUOUS", 409, Exit.USAGE,
    message="{count} agents are called {name!r}: {candidates}.",
    cause="A host can have several agents, and several hosts can have one name.",
    remedy="Give HOST/INSTANCE, or the agent's id where that is not enough.",
)  # fmt: skip
AGENT_QUARANTINED = _entry(
    "AGENT_QUARANTINED", 403, Exit.REFUSED,
    message="This agent is in quarantine: {reason}. It takes no work.",
    cause="An operator or an anomaly rule set it aside.",
    remedy="Look at `agentina agent show`, then release it with `agentina agent resume`.",
)  # fmt: skip
SESSION_SUPERSEDED = _entry(
    "SESSION_SUPERSEDED", 409, Exit.CONFLICT,
    message="Session {session} of this agent was taken over by session {current}.",
    cause="A restarted daemon takes its session over. If it repeats, the same identity runs in two places.",
    remedy="Usually nothing: the daemon opens a new session. If it repeats, look for a cloned state directory.",
)  # fmt: skip
SIGNATURE_INVALID = _entry(
    "SIGNATURE_INVALID", 403, Exit.REFUSED,
    message="The signature of {what} does not verify: {problem}.",
    cause="The content was altered on the way, is addressed to another agent, or comes from another control plane.",
    remedy="Nothing was started. If it repeats, check what stands between host and control plane.",
)  # fmt: skip

# --- jobs -----------------------------------------------------------------------------------------------------------

JOB_UNKNOWN = _entry(
    "JOB_UNKNOWN", 404, Exit.NOT_FOUND,
    message="There is no job {job}.",
    cause="The id is mistyped, or the job belongs to another organization.",
    remedy="List jobs with `agentina job list --all`.",
)  # fmt: skip
JOB_FINISHED = _entry(
    "JOB_FINISHED", 409, Exit.CONFLICT,
    message="Job {job} has already ended as '{state}'.",
    cause="A job ends in exactly one final state and stays there.",
    remedy="To run it again use `agentina job retry {job}`.",
)  # fmt: skip
JOB_NOT_FINISHED = _entry(
    "JOB_NOT_FINISHED", 409, Exit.CONFLICT,
    message="Job {job} is '{state}'; only an ended job can be retried.",
    cause="The job is still waiting or running.",
    remedy="Wait for it (`agentina job logs -f {job}`) or cancel it first.",
)  # fmt: skip
JOB_NEED_UNKNOWN = _entry(
    "JOB_NEED_UNKNOWN", 400, Exit.USAGE,
    message="needs: job {job} does not exist.",
    cause="A job can only need jobs that were submitted before it.",
    remedy="Submit the needed job first and use the id it is given.",
)  # fmt: skip
JOB_KEY_REUSED = _entry(
    "JOB_KEY_REUSED", 409, Exit.CONFLICT,
    message="The idempotency key was used before for another job ({job}).",
    cause="A key stands for one submission; this request has the same key and a different body.",
    remedy="Use a new key for a new job.",
)  # fmt: skip
TASK_UNKNOWN = _entry(
    "TASK_UNKNOWN", 404, Exit.NOT_FOUND,
    message="There is no task {task}.",
    cause="The id is mistyped, or the task is not this agent's.",
    remedy="List a job's tasks with `agentina job show`.",
)  # fmt: skip
ARTIFACT_UNKNOWN = _entry(
    "ARTIFACT_UNKNOWN", 404, Exit.NOT_FOUND,
    message="Job {job} has no artifact {name!r}.",
    cause="The name is mistyped, or the job did not leave it.",
    remedy="List them with `agentina job artifacts {job}`.",
)  # fmt: skip
ARTIFACT_CORRUPT = _entry(
    "ARTIFACT_CORRUPT", 422, Exit.FAILED,
    message="Artifact {name!r} has SHA-256 {found}; {expected} was announced.",
    cause="The content changed on disk or on the way.",
    remedy="The upload starts again from the beginning by itself.",
)  # fmt: skip
ARTIFACTS_TOO_LARGE = _entry(
    "ARTIFACTS_TOO_LARGE", 422, Exit.FAILED,
    message="The task left more than may be kept: {found}; the limit is {limit}.",
    cause="The declared patterns, or the changes in the workspace, match more than the job's limits.artifacts allows.",
    remedy="Declare narrower patterns, ignore generated files in .gitignore, or raise limits.artifacts.",
)  # fmt: skip
OFFSET_MISMATCH = _entry(
    "OFFSET_MISMATCH", 409, Exit.CONFLICT,
    message="The next expected offset is {expected}; the request says {found}.",
    cause="An answer was lost, or the control plane lost unsynced data.",
    remedy="The sender continues from the expected offset by itself.",
)  # fmt: skip
POLICY_REFUSED = _entry(
    "POLICY_REFUSED", 403, Exit.REFUSED,
    message="The policy of host {host} refuses this job: {rule}.",
    cause="The host's owner limits what runs here in policy.yaml, whoever asks.",
    remedy="Change the job, choose another agent by role or label, or ask the host's owner "
    "(`agentina policy check` explains).",
)  # fmt: skip

PATHS_OVERLAP = _entry(
    "PATHS_OVERLAP", 409, Exit.FAILED,
    message="Jobs that ran at the same time changed the same paths of {repository}.",
    cause="They did not declare these paths in `scope.paths`, so nothing kept them apart.",
    remedy="Expect their patches to conflict. Declare the paths, or let one job need the other.",
)  # fmt: skip

# --- how runs go ----------------------------------------------------------------------------------------------------

RUN_STUCK = _entry(
    "RUN_STUCK", 409, Exit.FAILED,
    message="A task is stuck: {problem}.",
    cause="It waits for something that does not come: a prompt for a person, a lock, a connection.",
    remedy="Look at its last output (`agentina job logs`); cancel and retry it, or set the job's health.act.",
)  # fmt: skip
RUN_LOOPING = _entry(
    "RUN_LOOPING", 409, Exit.FAILED,
    message="An AI agent goes in circles: {problem}.",
    cause="It tries the same again and again, or waits for something by asking over and over.",
    remedy="Look at its output; cancel it and say in the prompt what to do instead, or set the job's health.act.",
)  # fmt: skip
RUN_CONTEXT_FULL = _entry(
    "RUN_CONTEXT_FULL", 409, Exit.FAILED,
    message="An AI agent's context is nearly full: {problem}.",
    cause="The work is long, or tools answer with much text; it will forget the beginning, or end.",
    remedy="Split the job, or have its tools print less.",
)  # fmt: skip
RUN_HUNG = _entry(
    "RUN_HUNG", 409, Exit.FAILED,
    message="An AI agent's process did not end after its result.",
    cause="A process that it started, or a tool server, holds it.",
    remedy="Nothing: it was ended and keeps its result. If it repeats, look at what its tool servers do at the end.",
)  # fmt: skip

# --- what tasks say -------------------------------------------------------------------------------------------------

TASK_SAYS_TOO_MUCH = _entry(
    "TASK_SAYS_TOO_MUCH", 429, Exit.REFUSED,
    message="This is not taken: {problem}.",
    cause="What a task says is bounded in number and pace, so that a confused one floods nobody.",
    remedy="Go on with the work; say again later only what an operator really needs.",
)  # fmt: skip
TASK_UNREACHABLE_DAEMON = _entry(
    "TASK_UNREACHABLE_DAEMON", 503, Exit.UNAVAILABLE,
    message="The daemon of this task does not answer: {problem}.",
    cause="It does not run now, or is being updated.",
    remedy="Go on with the work and try again later; nothing of the task is lost.",
)  # fmt: skip
COMPLAINT_MISSING_SECRET = _entry(
    "COMPLAINT_MISSING_SECRET", 422, Exit.FAILED,
    message="A task says that it lacks a secret: {about}.",
    cause="The job's environment does not have it, or under another name.",
    remedy="Add it to the job's environment, marked as a `secret`, and retry the job, or answer what to do without it.",
)  # fmt: skip
COMPLAINT_BLOCKED_HOST = _entry(
    "COMPLAINT_BLOCKED_HOST", 422, Exit.FAILED,
    message="A task says that it cannot reach a host: {about}.",
    cause="The job's scope or the host owner's policy does not name it, or it is down.",
    remedy="Name it in the job's scope.hosts and in the host's policy, or answer what to use instead.",
)  # fmt: skip
COMPLAINT_BROKEN_TOOL = _entry(
    "COMPLAINT_BROKEN_TOOL", 422, Exit.FAILED,
    message="A task says that a tool does not work: {about}.",
    cause="It is not installed on that host, is of another version, or fails.",
    remedy="Look at the evidence, repair the tool on the hosts that report it, and retry the job.",
)  # fmt: skip
COMPLAINT_UNCLEAR_TASK = _entry(
    "COMPLAINT_UNCLEAR_TASK", 422, Exit.FAILED,
    message="A task says that it is not clear what it is to do: {about}.",
    cause="The prompt leaves something open, or contradicts the repository.",
    remedy="Answer with what is meant (`agentina anomaly answer`); it reaches the task while it runs.",
)  # fmt: skip
COMPLAINT_FULL_DISK = _entry(
    "COMPLAINT_FULL_DISK", 422, Exit.FAILED,
    message="A task says that there is no room on its disk: {about}.",
    cause="The host's disk is full, or the task's resources.disk is too small for it.",
    remedy="Look at the host's disk (`agentina agent show`), or raise the job's resources.disk.",
)  # fmt: skip
COMPLAINT_OTHER = _entry(
    "COMPLAINT_OTHER", 422, Exit.FAILED,
    message="A task complains: {about}.",
    cause="It is the task's own word.",
    remedy="Look at the evidence; answer the task (`agentina anomaly answer`) or close the anomaly.",
)  # fmt: skip
TASK_QUESTION = _entry(
    "TASK_QUESTION", 409, Exit.FAILED,
    message="A task asks: {text}.",
    cause="It cannot or should not decide this by itself.",
    remedy="Answer with `agentina anomaly answer`; every running task that asked the same is told.",
)  # fmt: skip
NOT_IN_TASK = _entry(
    "NOT_IN_TASK", 400, Exit.USAGE,
    message="This works inside a task only.",
    cause="AGENTINA_TASK_SOCKET is not set: this is no task of agentina's, or its environment was cleared.",
    remedy="Run it from the command of a job; from outside use `agentina job` and `agentina anomaly`.",
)  # fmt: skip

# --- things of the fleet --------------------------------------------------------------------------------------------

NOT_FOUND = _entry(
    "NOT_FOUND", 404, Exit.NOT_FOUND,
    message="There is no {what} {name!r}.",
    cause="The name or id is mistyped, or it was removed.",
    remedy="Check how it is written; `agentina agent list`, `organization list` and so on show what there is.",
)  # fmt: skip
NO_ROLLOUT = _entry(
    "NO_ROLLOUT", 404, Exit.NOT_FOUND,
    message="There has been no rollout yet.",
    cause="The newest rollout was asked for, and nobody has started any.",
    remedy="Start one with `agentina rollout start VERSION`.",
)  # fmt: skip
METHOD_NOT_ALLOWED = _entry(
    "METHOD_NOT_ALLOWED", 405, Exit.USAGE,
    message="{method} is not allowed for {path}.",
    cause="The address exists, the method does not.",
    remedy="See the API's description at /schema.",
)  # fmt: skip
FORBIDDEN = _entry(
    "FORBIDDEN", 403, Exit.REFUSED,
    message="This needs the role {needed}; the token has {role}.",
    cause="The operator token's role does not allow it.",
    remedy="Use a token with that role.",
)  # fmt: skip
STATE_CONFLICT = _entry(
    "STATE_CONFLICT", 409, Exit.CONFLICT,
    message="{what} is {state}; expected {expected}.",
    cause="Something else changed it meanwhile, or the order of steps is another.",
    remedy="Look at its present state and decide anew.",
)  # fmt: skip

# --- reaching the other side ----------------------------------------------------------------------------------------

CONTROL_PLANE_UNREACHABLE = _entry(
    "CONTROL_PLANE_UNREACHABLE", 503, Exit.UNAVAILABLE,
    message="The control plane at {url} cannot be reached: {problem}.",
    cause="It is down, the address is wrong, or a firewall, proxy or DNS stands between.",
    remedy="Check the address and try `curl {url}/healthz` from this host.",
)  # fmt: skip
CONTROL_PLANE_UNKNOWN = _entry(
    "CONTROL_PLANE_UNKNOWN", 400, Exit.USAGE,
    message="No control plane is known here.",
    cause="Nobody has logged in as this user, or under this --root.",
    remedy="Run `agentina login URL`, or set AGENTINA_CONTROL_PLANE and AGENTINA_API_TOKEN_FILE.",
)  # fmt: skip
ANSWER_UNREADABLE = _entry(
    "ANSWER_UNREADABLE", 502, Exit.UNAVAILABLE,
    message="The answer is not what an agentina control plane sends: {what}.",
    cause="Another server or a proxy answered, or the answer was cut off.",
    remedy="Check the address; if a proxy stands between, let it pass /v1 unchanged.",
)  # fmt: skip
URL_INSECURE = _entry(
    "URL_INSECURE", 400, Exit.USAGE,
    message="{url} is plain http to another machine.",
    cause="Plain http is accepted for loopback addresses only.",
    remedy="Use https:// (see `agentina control-plane serve --tls-cert`).",
)  # fmt: skip
OVERLOADED = _entry(
    "OVERLOADED", 429, Exit.UNAVAILABLE,
    message="Too many requests at once: {what}.",
    cause="The control plane limits what it holds in memory.",
    remedy="Try again after {retry_after} s; agents do so by themselves.",
)  # fmt: skip
STORAGE_FULL = _entry(
    "STORAGE_FULL", 507, Exit.UNAVAILABLE,
    message="The control plane's disk is full; nothing was changed.",
    cause="Its data directory has no room left.",
    remedy="Free space there. Agents keep their results and send them when there is room.",
)  # fmt: skip
SHUTTING_DOWN = _entry(
    "SHUTTING_DOWN", 503, Exit.UNAVAILABLE,
    message="The control plane is stopping.",
    cause="It was asked to stop or is being updated.",
    remedy="Try again in some seconds; agents do so by themselves.",
)  # fmt: skip
PROTOCOL_UNSUPPORTED = _entry(
    "PROTOCOL_UNSUPPORTED", 426, Exit.UNAVAILABLE,
    message="Protocol version {found} is not supported; this side speaks {oldest} to {newest}.",
    cause="Host and control plane are too far apart in version.",
    remedy="Upgrade the older side.",
)  # fmt: skip
INTERNAL = _entry(
    "INTERNAL", 500, Exit.INTERNAL,
    message="Something went wrong inside agentina ({incident}).",
    cause="A fault of agentina.",
    remedy="Look for the incident's number in the log of the side that answered, and report it.",
)  # fmt: skip

# --- this host ------------------------------------------------------------------------------------------------------

INSTANCE_UNKNOWN = _entry(
    "INSTANCE_UNKNOWN", 404, Exit.NOT_FOUND,
    message="There is no instance {instance!r} on this host (looked in {path}).",
    cause="It was never installed, was uninstalled, or lives under another --root.",
    remedy="Install it with `agentina install --token-file FILE --control-plane URL`; "
    "`agentina status --all` lists instances.",
)  # fmt: skip
INSTANCE_OTHER = _entry(
    "INSTANCE_OTHER", 409, Exit.CONFLICT,
    message="Instance {instance!r} is already installed for control plane {url}.",
    cause="An instance belongs to one control plane.",
    remedy="Choose another --instance name, or run `agentina uninstall --purge --instance {instance}` first.",
)  # fmt: skip
DAEMON_NOT_RUNNING = _entry(
    "DAEMON_NOT_RUNNING", 503, Exit.UNAVAILABLE,
    message="The daemon of instance {instance!r} does not answer on {path}.",
    cause="It is not started, is starting, or crashed. An installed package runs it as a service of systemd "
    "(`systemctl start agentina@INSTANCE`); elsewhere, and under --root, it is a process that you start.",
    remedy="Start it with `{start}`; `{logs}` tells what it did before.",
)  # fmt: skip
DAEMON_RUNNING = _entry(
    "DAEMON_RUNNING", 409, Exit.CONFLICT,
    message="Another daemon already runs instance {instance!r} (process {pid}).",
    cause="Each instance has one daemon; a lock in its state directory makes sure.",
    remedy="Use the running one, or stop it first.",
)  # fmt: skip
DISK_FULL = _entry(
    "DISK_FULL", 507, Exit.STATE,
    message="No room on the disk that holds {path}.",
    cause="The file system is full or its quota is used up.",
    remedy="Free space; the daemon continues by itself, nothing was lost.",
)  # fmt: skip
STATE_CORRUPT = _entry(
    "STATE_CORRUPT", 500, Exit.STATE,
    message="{path} is damaged ({problem}); it was set aside as {aside}.",
    cause="A power cut on a disk that lies about writes, a full disk, or a hand edit.",
    remedy="The rest goes on. Keep the file that was set aside if you want to look into it.",
)  # fmt: skip
IDENTITY_DAMAGED = _entry(
    "IDENTITY_DAMAGED", 500, Exit.STATE,
    message="{path}, which has this agent's key, is damaged ({problem}).",
    cause="A release with a fault, a power cut on a disk that lies about writes, or a hand edit.",
    remedy="It stays where it is. `sudo agentina rollback --identity` puts back what was there before the last update, "
    "if that was at most seven days ago. Otherwise move the file away, and activate this host again with a new token: "
    "`sudo agentina install --token …`.",
)  # fmt: skip
IDENTITY_NOT_RESTORED = _entry(
    "IDENTITY_NOT_RESTORED", 409, Exit.STATE,
    message="The identity of instance {instance} was not put back: {problem}.",
    cause="A copy is taken before each update and kept for seven days; or the disk is full, or refuses.",
    remedy="Without a copy, move the damaged identity away, and activate this host again with a new token: "
    "`sudo agentina install --token …`.",
)  # fmt: skip
LOCAL_FORBIDDEN = _entry(
    "LOCAL_FORBIDDEN", 403, Exit.REFUSED,
    message="This user ({user}) may not ask the daemon on this host for {verb!r}.",
    cause="The daemon's socket serves root and the daemon's own user; members of its group may look, no more.",
    remedy="Use sudo. A user who is to see `agentina status` without it joins the group, "
    "`sudo usermod --append --groups {group} USER`, and logs in again.",
)  # fmt: skip
LOG_FORBIDDEN = _entry(
    "LOG_FORBIDDEN", 403, Exit.REFUSED,
    message="This user ({user}) may not read the system's journal, where the log of {unit} is.",
    cause="The journal is for root and the members of some groups (systemd-journal, adm): it has everybody's log.",
    remedy="Use sudo. A user who is to see logs without it joins the group, "
    "`sudo usermod --append --groups systemd-journal USER`, and logs in again.",
)  # fmt: skip
PATH_FORBIDDEN = _entry(
    "PATH_FORBIDDEN", 403, Exit.REFUSED,
    message="This user ({user}) may not use {path}: {problem}.",
    cause="It belongs to another user, often to root or the one the agent runs as.",
    remedy="Use sudo, run as that user, or choose a --root of your own.",
)  # fmt: skip
STATE_UNWRITABLE = _entry(
    "STATE_UNWRITABLE", 500, Exit.STATE,
    message="{path} cannot be written: {problem}.",
    cause="Permissions, a read-only file system, or a wrong --root.",
    remedy="Run as the right user, or choose a --root you may write to.",
)  # fmt: skip
WORKSPACE_FAILED = _entry(
    "WORKSPACE_FAILED", 422, Exit.FAILED,
    message="The workspace cannot be made from {repository} at {ref!r}: {problem}.",
    cause="The repository or ref does not exist, needs credentials this host lacks, or git is missing.",
    remedy="Try `git ls-remote` with the same address on the host, and check `agentina doctor`.",
)  # fmt: skip
CHECKPOINT_FAILED = _entry(
    "CHECKPOINT_FAILED", 422, Exit.FAILED,
    message="The checkpoint failed: {problem}.",
    cause="It is larger than the job's checkpoint.limit, damaged, or cannot be taken or gone on from here.",
    remedy="The job goes on from an earlier one, or begins anew. If it is too large, raise checkpoint.limit.",
)  # fmt: skip
TASK_START_FAILED = _entry(
    "TASK_START_FAILED", 422, Exit.FAILED,
    message="The task could not be started: {problem}.",
    cause="The program does not exist on the host or is not executable, the host refused to start a process, or it has "
    "no gateway to hold the job's budget.",
    remedy="Check what the message names: the program's path in the job's payload (a `script` needs /bin/sh), or "
    "`gateway` in the host's configuration.",
)  # fmt: skip
SYSTEMD_UNREACHABLE = _entry(
    "SYSTEMD_UNREACHABLE", 503, Exit.STATE,
    message="PID 1 does not answer on the system bus: {problem}.",
    cause="The package dbus is not installed, its service does not run, or PID 1 is being executed anew.",
    remedy="Check `systemctl status dbus.service`; it is tried again by itself.",
)  # fmt: skip
SYSTEMD_REFUSED = _entry(
    "SYSTEMD_REFUSED", 403, Exit.STATE,
    message="PID 1 refused {what} for {unit}: {problem}.",
    cause="The package polkitd or agentina's rule for it is missing, or the daemon runs as another user.",
    remedy="Install polkitd, and check /usr/share/polkit-1/rules.d/50-agentina.rules; `agentina doctor` looks at both.",
)  # fmt: skip
PRECONDITION_FAILED = _entry(
    "PRECONDITION_FAILED", 412, Exit.STATE,
    message="This host is not ready: {problems}.",
    cause="A check of `agentina doctor` failed.",
    remedy="Follow the remedies that `agentina doctor` prints.",
)  # fmt: skip
SERVICE_FAILED = _entry(
    "SERVICE_FAILED", 500, Exit.STATE,
    message="systemd refused `systemctl {what}`: {problem}.",
    cause="Not enough rights, a unit that is missing or damaged, or a daemon that ends at once.",
    remedy="Run as root, and read `systemctl status {unit}` and `journalctl -u {unit}`.",
)  # fmt: skip

ANOMALIES_LEFT_OUT = _entry(
    "ANOMALIES_LEFT_OUT", 429, Exit.FAILED,
    message="More than {most} different anomalies were found in a short time; further ones were only counted.",
    cause="Something fails in ever different words, or a task complains without end.",
    remedy="Look at this host's other anomalies (`agentina anomaly list --agent`) and at `agentina logs` on it.",
)  # fmt: skip

# --- releases and updates ---------------------------------------------------------------------------------------------

UPDATE_UNTRUSTED = _entry(
    "UPDATE_UNTRUSTED", 502, Exit.REFUSED,
    message="The release repository was refused: {problem}.",
    cause="Its files were changed on the way or at the server, are older than what was seen before, or are signed by "
    "keys that this host does not trust (any more).",
    remedy="Nothing was installed and what runs goes on. Try again; if it stays, ask whoever publishes the releases, "
    "and see docs/how-to/publish-releases.md (recovery).",
)  # fmt: skip
UPDATE_EXPIRED = _entry(
    "UPDATE_EXPIRED", 502, Exit.REFUSED,
    message="The release metadata is out of date: {problem}.",
    cause="Nobody signed the repository anew in time, something on the way serves an old copy, or this host's clock "
    "is wrong.",
    remedy="What runs goes on; only installing waits. Check the clock (`timedatectl`), and that the control plane or "
    "whoever signs the repository does so.",
)  # fmt: skip
UPDATE_UNREACHABLE = _entry(
    "UPDATE_UNREACHABLE", 503, Exit.UNAVAILABLE,
    message="The release repository at {url} cannot be read: {problem}.",
    cause="The network, the name service, a proxy or the server is away or too slow.",
    remedy="Try again later; nothing was changed.",
)  # fmt: skip
RUNNER_MISSING = _entry(
    "RUNNER_MISSING", 409, Exit.NOT_FOUND,
    message="The program of the runner {runner} is not here ({path}).",
    cause="It was taken away, or another version of it installed, since the daemon looked.",
    remedy="See `agentina runner list` for the copies that this host keeps; `agentina runner install` makes one. "
    "`systemctl reload agentina@INSTANCE` has the daemon look again.",
)  # fmt: skip
RUNNER_COPY_DAMAGED = _entry(
    "RUNNER_COPY_DAMAGED", 409, Exit.STATE,
    message="{path} is no copy of a runner that can be used: {problem}.",
    cause="Its files were changed or deleted, or others than root may write there.",
    remedy="Remove it with `agentina runner remove NAME VERSION` and install it again.",
)  # fmt: skip
RUNNER_COPY_UNSUITABLE = _entry(
    "RUNNER_COPY_UNSUITABLE", 422, Exit.REFUSED,
    message="{source} cannot be installed as runner {runner}: {problem}.",
    cause="It is not what was expected: another hash or version, no program, or made for another machine.",
    remedy="Give the package that brings the program for this machine (docs/how-to/run-ai-agents.md). `--program` says "
    "which of its files the program is, `--version` which version, where the program does not say so.",
)  # fmt: skip
RUNNER_COPY_BUSY = _entry(
    "RUNNER_COPY_BUSY", 409, Exit.CONFLICT,
    message="The copy {name} is needed: {why}.",
    cause="A task keeps the version with which it began until its end, and the default is what most jobs get.",
    remedy="Make another version the default with `agentina runner use`, or wait for the tasks' end.",
)  # fmt: skip
RELEASE_UNKNOWN = _entry(
    "RELEASE_UNKNOWN", 404, Exit.NOT_FOUND,
    message="There is no {what} in {where}.",
    cause="It was never published there, was withdrawn, or is not made for this machine.",
    remedy="See `agentina release list` for what there is.",
)  # fmt: skip
RELEASE_KEY_REFUSED = _entry(
    "RELEASE_KEY_REFUSED", 403, Exit.REFUSED,
    message="The release key {key} cannot be used: {problem}.",
    cause="The passphrase is wrong, or the repository's root does not give this key the role (any more).",
    remedy="See `agentina release keys list --repository DIR` for which keys may sign what.",
)  # fmt: skip
RELEASE_UNSUITABLE = _entry(
    "RELEASE_UNSUITABLE", 422, Exit.REFUSED,
    message="Release {version} cannot run here: {problem}.",
    cause="It is made for another machine or Python, or its files are not those that were built.",
    remedy="Install another release. A damaged one is fetched again by `agentina upgrade`.",
)  # fmt: skip
RELEASE_ROOT_MISSING = _entry(
    "RELEASE_ROOT_MISSING", 409, Exit.STATE,
    message="This host has no root of trust for releases ({path}).",
    cause="It was installed while its control plane had no release repository, or the file was deleted.",
    remedy="Run the `agentina install` of this host again (it needs no token), or put the repository's root there "
    "(docs/how-to/update-hosts.md).",
)  # fmt: skip
UPDATE_ROLLED_BACK = _entry(
    "UPDATE_ROLLED_BACK", 409, Exit.FAILED,
    message="Release {version} was rolled back: {reason}.",
    cause="It failed on this host, or what was needed to try it was not there.",
    remedy="This host runs what it ran before. Read /var/lib/agentina/.updates/{instance}/logs/{version}.log for what "
    "it wrote, where it was tried, and docs/how-to/update-hosts.md for what to do about the reason; `agentina upgrade` "
    "tries it again.",
)  # fmt: skip
RELEASE_SKIPPED = _entry(
    "RELEASE_SKIPPED", 409, Exit.CONFLICT,
    message="Release {version} is not tried again on this host: {reason}.",
    cause="It was tried here before and rolled back.",
    remedy="Read `agentina status` for what happened; `agentina upgrade {version} --retry` tries it all the same.",
)  # fmt: skip
UPDATER_MISSING = _entry(
    "UPDATER_MISSING", 409, Exit.CONFLICT,
    message="This agent cannot change to release {version} by itself.",
    cause="Releases are changed where the package is installed and systemd runs. This one was started by hand, or in a "
    "container.",
    remedy="Give it the release the way it got the present one: a new image, say. A rollout leaves it out.",
)  # fmt: skip
CONFIGURATION_LEFT = _entry(
    "CONFIGURATION_LEFT", 409, Exit.FAILED,
    message="Configuration {version} does not hold on this host: {reason}.",
    cause="It has a key or value that the host's release does not know, no task could run with it, or the daemon ended "
    "again and again before it could say that it works.",
    remedy="The host uses the settings it had before. Correct the file, or update the host, and start another rollout.",
)  # fmt: skip
ROLLOUT_HALTED = _entry(
    "ROLLOUT_HALTED", 409, Exit.FAILED,
    message="Rollout {rollout} was halted by the gate {gate}: {reason}.",
    cause="Agents with the new release, or the new settings, did worse than before and than the others.",
    remedy="Everybody goes back by itself. `agentina rollout status {rollout}` shows the figures and the agents; the "
    "anomalies of those agents show what failed there.",
)  # fmt: skip
ROLLOUT_OVERLAPS = _entry(
    "ROLLOUT_OVERLAPS", 409, Exit.CONFLICT,
    message="Rollout {rollout} ({state}) may choose the same agents: it is for {select}.",
    cause="An agent takes part in one active rollout at a time, or two would pull it to and fro.",
    remedy="Wait for its end, or end it with `agentina rollout abort {rollout}`; or select other agents.",
)  # fmt: skip
ROLLOUT_EMPTY = _entry(
    "ROLLOUT_EMPTY", 409, Exit.CONFLICT,
    message="No agent is there to get {version} ({select}).",
    cause="None matches the selection, or all that do run a newer version.",
    remedy="Look at `agentina agent list`. An older version is no way back: publish a newer one with what it had.",
)  # fmt: skip

# --- the gateway: answers to the tools of a task --------------------------------------------------------------------

EGRESS_REFUSED = _entry(
    "EGRESS_REFUSED", 403, Exit.REFUSED,
    message="This task may not reach {host}:{port}: {problem}.",
    cause="A task reaches only hosts that its job's scope and the host's policy name, at public addresses.",
    remedy="Name the host in the job's `scope.hosts`, or ask the owner of the host (`hosts` in policy.yaml).",
)  # fmt: skip
GATEWAY_REQUEST_INVALID = _entry(
    "GATEWAY_REQUEST_INVALID", 400, Exit.USAGE,
    message="The gateway does not take this request: {problem}.",
    cause="A tool in a task speaks something else than plain HTTP/1.1, or so that two readers could differ on it.",
    remedy="Use the gateway as an HTTP proxy (CONNECT, http:// URLs), or at its paths for models.",
)  # fmt: skip
GATEWAY_UNUSABLE = _entry(
    "GATEWAY_UNUSABLE", 503, Exit.STATE,
    message="The gateway of this host cannot be used: {problem}.",
    cause="The host has no gateway and the job has a budget; or gateway.yaml, or a key of a provider that it names, is "
    "missing or damaged, or its process cannot work. Jobs with a budget, and AI agents, go to other hosts meanwhile.",
    remedy="Mend what the message names; `agentina doctor` says whether it can be read. The daemon sees it within a "
    "minute, or at once with `systemctl reload`.",
)  # fmt: skip
GATEWAY_TOKEN_REFUSED = _entry(
    "GATEWAY_TOKEN_REFUSED", 403, Exit.REFUSED,
    message="The gateway's token is {problem}.",
    cause="A request came without the task's own token, or with that of another task.",
    remedy="Keep the variables a task is started with: HTTPS_PROXY, ANTHROPIC_API_KEY, OPENAI_API_KEY.",
)  # fmt: skip
BUDGET_EXHAUSTED = _entry(
    "BUDGET_EXHAUSTED", 402, Exit.REFUSED,
    message="This task's budget is used up: {problem}.",
    cause="A limit of the task, of its agent or of its organization is reached, or too little is left for a call.",
    remedy="Raise it with `agentina budget raise`; a task that is held goes on then, another job is submitted again.",
)  # fmt: skip
MODEL_REFUSED = _entry(
    "MODEL_REFUSED", 400, Exit.REFUSED,
    message="Model {model} cannot be used here: {problem}.",
    cause="No provider of this host serves it, or the job's budget is in money and its price is not known.",
    remedy="Use another model, or have the owner of the host add it to gateway.yaml (`providers`, `prices`).",
)  # fmt: skip
PROVIDER_FAILED = _entry(
    "PROVIDER_FAILED", 502, Exit.UNAVAILABLE,
    message="The provider {provider} {problem}.",
    cause="It is away, too slow, overloaded, or does not take the key this host has for it.",
    remedy="Try again later. Where it refuses the key: the owner of the host replaces it in the credential store.",
)  # fmt: skip

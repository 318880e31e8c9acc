"""The host owner's own rules, ``/etc/agentina/policy.yaml``: what this host accepts at all, whoever asks.

An absent file allows everything; an absent key restricts nothing; an empty list allows nothing. A file that cannot be
understood refuses all work until it is corrected, because a rule nobody can read must not become no rule.
docs/reference/configuration.md is generated from the fields.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from agentina import errors
from agentina.protocol import inputs, units
from agentina.protocol.jobs import Command, JobSpec
from agentina.system import files

_MAX_POLICY: Final = 1 << 20
_MEASURES: Final[inputs.Measures] = {"max_memory": units.parse_size, "max_timeout": units.parse_duration}
Patterns = Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]], msgspec.Meta(max_length=4096)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of the policy file. None (absent): no restriction."""

    #: Runners accepted, by name: ``claude-code``, or ``claude-code@2.1.329`` for jobs that ask for this version.
    runners: Patterns | None = None
    #: Roles of jobs accepted, glob patterns; a job without a role is always accepted.
    roles: Patterns | None = None
    #: Programs a job may start, glob patterns for ``argv[0]`` as the job writes it; a script needs ``/bin/sh``. An AI
    #: agent starts whatever it finds: with this key its runner has to be named under ``runners``.
    executables: Patterns | None = None
    #: Repositories a workspace may come from, glob patterns; a job without one is always accepted.
    repositories: Patterns | None = None
    #: Most memory of one task (bytes, or a size such as 4GiB).
    max_memory: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: Longest time limit of one task (seconds, or a duration such as 2h).
    max_timeout: Annotated[float, msgspec.Meta(ge=0)] | None = None
    #: Most CPUs of one task.
    max_cpus: Annotated[float, msgspec.Meta(ge=0)] | None = None
    #: Hosts tasks may reach through the gateway, of those their job names: ``example.com``, ``*.example.com``, each
    #: with an optional ``:PORT``.
    hosts: Patterns | None = None
    #: Environment variables a job may not set, glob patterns.
    denied_environment: Patterns = []


def load(path: Path) -> Policy:
    """Read the policy file; one that does not exist restricts nothing.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``INPUT_UNKNOWN_KEY``, ``INPUT_INVALID`` or
            ``INPUT_TOO_LARGE``.

    """
    try:
        text = files.read_bounded(path, limit=_MAX_POLICY)
    except FileNotFoundError:
        return Policy()
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error
    document = inputs.decode_yaml(text, str(path))
    return parse({} if document is None else document, str(path))


def parse(document: Any, where: str) -> Policy:
    """Validate a decoded policy document.

    Raises:
        AgentinaError: ``INPUT_UNKNOWN_KEY`` (with a near miss) or ``INPUT_INVALID``.

    """
    return inputs.convert(inputs.measured(document, _MEASURES, where), Policy, where)


def check(policy: Policy, job: JobSpec) -> list[str]:
    """The sentences that forbid ``job``; none when it may run. Pure."""
    return [*_check_lists(policy, job), *_check_ceilings(policy, job)]


def _check_lists(policy: Policy, job: JobSpec) -> list[str]:
    found = []
    if policy.runners is not None and not {job.runner, job.runner_name} & {*policy.runners}:
        found.append(f"runner {job.runner!r} is not among the accepted ones ({_listed(policy.runners)})")
    if job.role is not None and not _matches(job.role, policy.roles):
        found.append(f"role {job.role!r} is not among the accepted ones ({_listed(policy.roles)})")
    commands: list[tuple[str, Command]] = [("verify", job.verify)] if job.verify is not None else []
    if job.runner == "command":
        commands.insert(0, ("payload", job.payload))
    elif policy.executables is not None and policy.runners is None:
        found.append(f"runner {job.runner!r} starts any program; name it under `runners` to accept it")
    for where, command in commands:
        program = _program(command)
        if not _matches(program, policy.executables):
            found.append(f"{where}: program {program[:200]!r} is not accepted ({_listed(policy.executables)})")
    if job.workspace.git is not None and not _matches(job.workspace.git, policy.repositories):
        found.append(f"repository {job.workspace.git[:200]!r} is not accepted ({_listed(policy.repositories)})")
    denied = [
        name for name in job.environment if policy.denied_environment and _matches(name, policy.denied_environment)
    ]
    if denied:
        found.append(f"environment variables {', '.join(sorted(denied))} may not be set")
    return found


def _check_ceilings(policy: Policy, job: JobSpec) -> list[str]:
    found = []
    if policy.max_memory is not None and job.memory_bytes > policy.max_memory:
        wanted, most = units.show_size(job.memory_bytes), units.show_size(policy.max_memory)
        found.append(f"memory {wanted} is above the ceiling of {most}")
    if policy.max_timeout is not None and job.limits.timeout > policy.max_timeout:
        wanted, most = units.show_duration(job.limits.timeout), units.show_duration(policy.max_timeout)
        found.append(f"time limit {wanted} is above the ceiling of {most}")
    if policy.max_cpus is not None and job.cpus > policy.max_cpus:
        found.append(f"{job.cpus:g} CPUs are above the ceiling of {policy.max_cpus:g}")
    return found


def _program(command: Command) -> str:
    return command.argv[0] if command.argv else "/bin/sh"


def _matches(value: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)


def _listed(patterns: list[str] | None) -> str:
    shown = ", ".join((patterns or [])[:10])
    return f"accepted: {shown}" if shown else "none is accepted"

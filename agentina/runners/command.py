"""Runner ``command``: any program, or a script for ``/bin/sh -e``."""

from __future__ import annotations

from typing import Final

from agentina.protocol.jobs import Command, JobSpec
from agentina.runners import contract

#: Characters of a script in one argument: the kernel takes at most 128 KiB each (execve(2)), and UTF-8 makes up to
#: four bytes of a character. Longer scripts go in parts and are joined by the shell.
_PART: Final = 32_000


class CommandRunner:
    """Starts the payload as it is."""

    name = "command"
    needs_home = False
    stream = ""

    def session_directory(self, place: contract.Place) -> str:  # noqa: ARG002 - the contract's signature
        """See :meth:`contract.Runner.session_directory`."""
        return ""

    def choose(self) -> contract.Chosen | None:
        """See :meth:`contract.Runner.choose`."""
        return None

    def plan(self, job: JobSpec, *, place: contract.Place) -> contract.Plan:  # noqa: ARG002 - the contract's signature
        """See :meth:`contract.Runner.plan`."""
        verify = None if job.verify is None else command_line(job.verify)
        return contract.Plan(argv=command_line(job.payload), verify=verify)


def command_line(command: Command) -> list[str]:
    """The argv of a command; a script goes to the shell that stops at the first error."""
    if command.argv is not None:
        return command.argv
    script = command.script
    assert script is not None
    if len(script) <= _PART:
        return ["/bin/sh", "-ec", script]
    parts = [script[start : start + _PART] for start in range(0, len(script), _PART)]
    joined = "".join(f"${{{number}}}" for number in range(1, len(parts) + 1))
    join = f'agentina_script="{joined}"; shift {len(parts)}; eval "$agentina_script"'
    return ["/bin/sh", "-ec", join, "/bin/sh", *parts]

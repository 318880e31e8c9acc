"""Runner ``command``: any program, or a script for ``/bin/sh -e``."""

from __future__ import annotations

from pathlib import Path

from agentina.protocol.jobs import Command, JobSpec
from agentina.runners import contract


class CommandRunner:
    """Starts the payload as it is."""

    name = "command"

    def plan(self, job: JobSpec, *, workspace: Path) -> contract.Plan:  # noqa: ARG002 - the contract's signature
        """See :meth:`contract.Runner.plan`."""
        verify = None if job.verify is None else command_line(job.verify)
        return contract.Plan(argv=command_line(job.payload), verify=verify)


def command_line(command: Command) -> list[str]:
    """The argv of a command; a script goes to the shell that stops at the first error."""
    if command.argv is not None:
        return command.argv
    assert command.script is not None
    return ["/bin/sh", "-ec", command.script]

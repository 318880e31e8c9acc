"""What every runner does: describe the process to start. A new runner is a new module and a line in the registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from agentina.protocol.jobs import JobSpec


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A process to start in the workspace."""

    argv: list[str]
    #: Variables the runner adds to the job's own.
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Command that must exit 0 afterwards, or None.
    verify: list[str] | None = None


class Runner(Protocol):
    """One kind of payload."""

    #: The word in the job's ``runner`` key.
    name: str

    def plan(self, job: JobSpec, *, workspace: Path) -> Plan:
        """What to start for ``job``.

        Raises:
            AgentinaError: ``INPUT_INVALID`` when the payload makes no sense to this runner.

        """
        ...

"""The executors this version has, by name, and the choice between them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentina import errors
from agentina.executors import contract, process

NAMES: Final = ("auto", "process")


def choose(name: str, *, state_directory: Path) -> contract.Executor:
    """The executor called ``name``; ``auto`` means the strongest this host offers.

    Args:
        name: A word of :data:`NAMES`, from the configuration.
        state_directory: The instance's own.

    Raises:
        AgentinaError: ``INPUT_INVALID`` for a name this version does not know.

    """
    if name not in NAMES:
        raise errors.INPUT_INVALID(where="executor", problem=f"{name[:80]!r} is none of {', '.join(NAMES)}")
    return process.ProcessExecutor(state_directory)

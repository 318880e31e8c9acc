"""The executors this version has, by name, and the choice between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.executors import contract, process
from agentina.system import services

NAMES: Final = ("auto", "process", "systemd")


def choose(name: str, *, state_directory: Path, slots: int = 1) -> contract.Executor:
    """The executor called ``name``; ``auto`` means the strongest this host offers.

    That is ``systemd`` where this daemon is a unit itself and the units for tasks are installed, and never ``process``
    there, even if PID 1 then refuses: tasks contained less than before would be a surprise.

    Args:
        name: A word of :data:`NAMES`, from the configuration.
        state_directory: The instance's own.
        slots: Most tasks at once.

    Raises:
        AgentinaError: ``INPUT_INVALID`` for a name this version does not know, or cannot use here.

    """
    if name not in NAMES:
        raise errors.INPUT_INVALID(where="executor", problem=f"{name[:80]!r} is none of {', '.join(NAMES)}")
    if name == "systemd" and not _has_units():
        problem = f"'systemd' needs {services.TASK_TEMPLATE}, which the agentina package installs"
        raise errors.INPUT_INVALID(where="executor", problem=problem)
    if name == "systemd" or (name == "auto" and _is_unit() and _has_units()):
        # Loaded on hosts that use it only: the bus and its library cost memory.
        from agentina.executors import systemd  # noqa: PLC0415

        return systemd.SystemdExecutor(state_directory)
    return process.ProcessExecutor(state_directory, slots=slots)


def _has_units() -> bool:
    return services.has_template(name=services.TASK_TEMPLATE)


def _is_unit() -> bool:
    """Whether PID 1 started this very process (systemd.exec(5)); children of a unit have the variable, not the id."""
    return services.runs_here() and os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())

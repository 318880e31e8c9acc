"""The runners of this host: those of this version whose programs are here, and those its owner describes in files."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.runners import agents, claude_code, codex, command, contract, copies, described, gemini, opencode

_Invoke = Callable[[agents.Wish], agents.Invocation]
_Sessions = Callable[[contract.Place], str]

#: Name of each AI agent we know to its program, how that is called, and where its sessions are.
_AGENTS: Final[dict[str, tuple[str, _Invoke, _Sessions | None]]] = {
    "claude-code": ("claude", claude_code.invoke, claude_code.sessions),
    "codex": ("codex", codex.invoke, codex.sessions),
    # The sessions of these two can be resumed in a directory of the same path only.
    "gemini": ("gemini", gemini.invoke, None),
    "opencode": ("opencode", opencode.invoke, None),
}

_log = logging.getLogger(__name__)


def load(directory: Path, copies_directory: Path) -> Mapping[str, contract.Runner]:
    """The runners this host has, by name; those with copies of their programs by name and version too.

    A runner whose program is not found, or whose description cannot be understood, is not there; the log says so.

    Args:
        directory: Holds descriptions; need not exist.
        copies_directory: Holds copies of programs; need not exist.

    """
    runners: dict[str, contract.Runner] = {}
    found = _descriptions(directory)
    kept = copies.read(copies_directory)
    for name in sorted(_AGENTS.keys() | found.keys()):
        description = found.get(name, described.Description())
        if description is None:
            continue
        own = [copy for copy in kept if copy.copy.runner == name]
        runners |= {copy.name: make(name, description, copy) for copy in own}
        # What the owner wrote down goes before what is the default.
        chosen = None if description.program else next((copy for copy in own if copy.is_default), None)
        runner = make(name, description, chosen)
        if shutil.which(runner.program, path=contract.SEARCH_PATH) is not None:
            runners[name] = runner
        elif name in found:
            _log.warning(
                "the runner %s is not offered: its program %r is not here", name, runner.program[:200],
                extra={"action": "runner-missing"},
            )  # fmt: skip
    shell = command.CommandRunner()
    return {shell.name: shell, **runners}


def programs(runners: Mapping[str, contract.Runner]) -> dict[str, str]:
    """Which program each AI agent's runner starts, for people."""
    found = {}
    for name, runner in runners.items():
        with contextlib.suppress(errors.AgentinaError, OSError):  # it has just gone
            chosen = runner.choose()
            if chosen is not None:
                found[name] = chosen.program
    return found


def usual_program(name: str) -> str:
    """What the program of a runner is called, as a rule."""
    return _AGENTS[name][0] if name in _AGENTS else name


def make(name: str, description: described.Description, copy: copies.Found | None = None) -> agents.AgentRunner:
    """The runner of an AI agent; with a copy of its program that this host keeps, or what is described."""
    if name not in _AGENTS:
        return described.make(name, description, copy)
    program, invoke, sessions = _AGENTS[name]
    return agents.AgentRunner(
        name,
        description.program or program,
        invoke,
        stream=name,
        environment=description.environment,
        sessions=sessions,
        copy=copy,
    )


def _descriptions(directory: Path) -> dict[str, described.Description | None]:
    """What each file describes; None: nobody can tell."""
    found: dict[str, described.Description | None] = {}
    for path in sorted(directory.glob("*.yaml")):
        try:
            found[path.stem] = _read(path)
        except errors.AgentinaError as error:
            found[path.stem] = None
            _log.error(
                "the runner %s is not offered: %s", path.stem[:80], error,
                extra={"action": "runner-damaged", "code": error.code},
            )  # fmt: skip
    return found


def _read(path: Path) -> described.Description:
    description = described.read(path)
    if path.stem in _AGENTS and (
        description.arguments or description.prompt != "stdin" or description.stream != "text"
    ):
        problem = "of a runner of ours only program and environment can be changed; another name makes another runner"
        raise errors.INPUT_INVALID(where=str(path), problem=problem)
    return description

"""Runners that a host's owner describes in a file, ``/etc/agentina/runners.d/<name>.yaml``.

One named like a runner of ours only says where its program is and which variables it gets; any other name is a runner
of its own. docs/reference/configuration.md is generated from the fields.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from agentina import errors
from agentina.protocol import inputs, names
from agentina.runners import agents, claude_code, copies
from agentina.system import files

_MAX_FILE: Final = 1 << 16
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_INSTRUCTIONS: Final = f"{agents.OWN}/instructions.md"
#: Placeholder to the payload's key behind it; the prompt always has a place.
_PLACEHOLDERS: Final = {
    "prompt_file": "",
    "system_prompt_file": "system_prompt",
    "mcp_config_file": "mcp_servers",
    "model": "model",
    "max_turns": "max_turns",
    "resume": "resume",
    "allowed_tools": "allowed_tools",
}

Argument = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of such a file."""

    #: The program: a path, or a name that is looked for in the tasks' PATH. Absent: the copy that
    #: `agentina runner install` made the default, else the runner's usual program in the tasks' PATH.
    program: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | None = None
    #: Its arguments, with placeholders ``{prompt_file}``, ``{system_prompt_file}``, ``{mcp_config_file}`` (in the form
    #: of Claude Code's), ``{model}``, ``{max_turns}``, ``{resume}`` and ``{allowed_tools}`` (with commas); ``{{`` is a
    #: brace. An argument, or a list of some, is left out when a placeholder in it has no value. A job that sets what no
    #: placeholder takes is refused.
    arguments: Annotated[list[Argument | list[Argument]], msgspec.Meta(max_length=256)] = []
    #: How it gets the prompt: on ``stdin``, or in the file that ``{prompt_file}`` names (stdin is then empty).
    prompt: Literal["stdin", "file"] = "stdin"
    #: What it prints: ``text``, of which nothing is read, or the events of the runner named here.
    stream: Literal["text", "claude-code", "codex", "gemini", "opencode"] = "text"
    #: Variables it gets; the job's own win.
    environment: Annotated[
        dict[str, Annotated[str, msgspec.Meta(max_length=65_536)]], msgspec.Meta(max_length=256)
    ] = {}


def read(path: Path) -> Description:
    """The description in a file.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``INPUT_UNKNOWN_KEY``, ``INPUT_INVALID`` or
            ``INPUT_TOO_LARGE``.

    """
    where = str(path)
    try:
        text = files.read_bounded(path, limit=_MAX_FILE)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=where, problem=error.strerror or where) from error
    document = inputs.decode_yaml(text, where)
    if _NAME.fullmatch(path.stem) is None or path.stem == "command":
        problem = f"{path.stem[:80]!r} is no name for a runner: lower-case letters, digits and dashes"
        raise errors.INPUT_INVALID(where=where, problem=problem)
    return parse({} if document is None else document, where)


def parse(document: Any, where: str) -> Description:
    """Validate a decoded description.

    Raises:
        AgentinaError: ``INPUT_UNKNOWN_KEY`` (with a near miss), ``INPUT_INVALID`` or ``NAME_INVALID``.

    """
    description = inputs.convert(document, Description, where)
    for name in description.environment:
        names.check_environment(name)
    for argument in _flat(description.arguments):
        try:
            used = _used(argument)
        except ValueError as error:
            raise errors.INPUT_INVALID(where=f"{where}.arguments", problem=f"{argument[:80]!r}: {error}") from error
        unknown = sorted(used - _PLACEHOLDERS.keys())
        if unknown:
            problem = f"there is no placeholder {{{unknown[0][:80]}}}; there are {', '.join(sorted(_PLACEHOLDERS))}"
            raise errors.INPUT_INVALID(where=f"{where}.arguments", problem=problem)
    return description


def make(name: str, description: Description, copy: copies.Found | None = None) -> agents.AgentRunner:
    """The runner that a file describes, with a copy that this host keeps of its program."""
    return agents.AgentRunner(
        name,
        description.program or name,
        _Call(description),
        stream="" if description.stream == "text" else description.stream,
        environment=description.environment,
        takes_servers="mcp_config_file" in {name for text in _flat(description.arguments) for name in _used(text)},
        copy=copy,
    )


class _Call:
    """How a described command line is called."""

    def __init__(self, description: Description) -> None:
        self._arguments = description.arguments
        self._has_prompt = description.prompt == "file"
        self._taken = {name for argument in _flat(description.arguments) for name in _used(argument)}

    def __call__(self, wish: agents.Wish) -> agents.Invocation:
        """The invocation; ``INPUT_INVALID`` when the job sets something that has no place in it."""
        for name, key in _PLACEHOLDERS.items():
            if key and name not in self._taken and getattr(wish.payload, key) not in (None, {}):
                raise agents.refuse(key, "this runner has no place for it")
        values = _values(wish)
        call = agents.Invocation(arguments=[], files=_files(wish), has_prompt=self._has_prompt)
        for item in self._arguments:
            group = _flat([item])
            if all(values[name] is not None for argument in group for name in _used(argument)):
                call.arguments += [argument.format(**values) for argument in group]
        return call


def _values(wish: agents.Wish) -> dict[str, str | None]:
    payload = wish.payload
    return {
        "prompt_file": agents.prompt_path(wish),
        "system_prompt_file": None if payload.system_prompt is None else wish.path(_INSTRUCTIONS),
        "mcp_config_file": wish.path(claude_code.SERVERS) if payload.mcp_servers else None,
        "model": payload.model,
        "max_turns": None if payload.max_turns is None else str(payload.max_turns),
        "resume": payload.resume,
        "allowed_tools": None if payload.allowed_tools is None else ",".join(payload.allowed_tools),
    }


def _files(wish: agents.Wish) -> dict[str, str]:
    made = {}
    if wish.payload.system_prompt is not None:
        made[_INSTRUCTIONS] = wish.payload.system_prompt
    if wish.payload.mcp_servers:
        made[claude_code.SERVERS] = claude_code.servers(wish.payload)
    return made


def _flat(arguments: Iterable[str | list[str]]) -> list[str]:
    return [text for item in arguments for text in ([item] if isinstance(item, str) else item)]


def _used(argument: str) -> set[str]:
    """The placeholders of an argument.

    Raises:
        ValueError: It is no such text.

    """
    used = set()
    for _, name, form, conversion in string.Formatter().parse(argument):
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError("a placeholder is a name in braces")
        used.add(name)
    return used

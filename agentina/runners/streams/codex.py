"""Codex's ``exec --json``: one JSON object a line.

What it does that one would not expect: ``usage`` is the thread's running total, earlier runs of a resumed thread
included; a top-level ``error`` ends nothing (it also tells of reconnecting), only ``turn.failed`` does; an item of type
``error`` is a warning; there is neither model nor cost in the stream; a signal ends it without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from agentina.protocol import wire
from agentina.runners.streams import events, values

_RECONNECTING: Final = "Reconnecting"

#: Item types that are uses of a tool: the tool's name and what it is to do.
_TOOLS: Final[dict[str, Callable[[dict[str, Any]], tuple[str, str]]]] = {
    "command_execution": lambda item: ("shell", values.text(item, "command")),
    "file_change": lambda item: ("edit", values.compact(item.get("changes"))),
    "mcp_tool_call": lambda item: (
        f"{values.text(item, 'server')}.{values.text(item, 'tool')}",
        values.compact(item.get("arguments")),
    ),
    "collab_tool_call": lambda item: (values.text(item, "tool") or "agent", values.compact(item.get("prompt"))),
    "web_search": lambda item: ("web_search", values.text(item, "query")),
}


def translate(line: dict[str, Any]) -> Iterator[events.Event]:
    """What one line says."""
    kind = values.text(line, "type")
    if kind == "thread.started":
        yield events.Session(id=values.text(line, "thread_id"))
    elif kind == "turn.started":
        yield events.Turn()
    elif kind in {"item.started", "item.completed"}:
        item = line.get("item")
        if isinstance(item, dict):
            yield from _item(item, is_over=kind == "item.completed")
    elif kind == "turn.completed":
        yield events.Spent(tokens=_tokens(line.get("usage")), is_of_session=True)
        yield events.Finished()
    elif kind == "turn.failed":
        yield events.Finished(is_error=True, kind="turn-failed", problem=values.problem(line.get("error")))
    elif kind == "error":
        words = values.problem(line.get("message"))
        yield events.Retry(problem=words) if words.startswith(_RECONNECTING) else events.Warned(problem=words)


def _item(item: dict[str, Any], *, is_over: bool) -> Iterator[events.Event]:
    kind = values.text(item, "type")
    if kind == "agent_message" and is_over:
        yield events.Said(text=values.text(item, "text"))
    elif kind == "error" and is_over:
        yield events.Warned(problem=values.problem(item.get("message")))
    elif kind in _TOOLS:
        name, arguments = _TOOLS[kind](item)
        identity = values.text(item, "id")
        yield events.ToolCall(id=identity, name=name, arguments=arguments)
        if is_over:
            status = values.text(item, "status")
            if status == "declined":
                yield events.Denied(name)
            yield events.ToolResult(
                id=identity,
                is_error=status in {"failed", "declined"} or bool(values.at(item, "exit_code")),
                text=values.text(item, "aggregated_output"),
            )


def _tokens(usage: Any) -> wire.Tokens | None:
    if not isinstance(usage, dict):
        return None
    cached = values.count(usage, "cached_input_tokens") or 0
    written = values.count(usage, "cache_write_input_tokens") or 0
    return wire.Tokens(
        input=max(0, (values.count(usage, "input_tokens") or 0) - cached - written),
        cached_input=cached,
        cache_write=written,
        output=values.count(usage, "output_tokens") or 0,
        reasoning=values.count(usage, "reasoning_output_tokens") or 0,
    )

"""Gemini CLI's ``--output-format stream-json``: one JSON object a line. It prints no cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agentina.protocol import wire
from agentina.runners.streams import events, values

_KINDS: Final = {"FatalTurnLimitedError": "max-turns"}
#: What it complains of, as nothing but a warning, before it ends with a success (measured with 0.61.0).
_GIVES_UP: Final = {"Loop detected, stopping execution": "loop", "Maximum session turns exceeded": "max-turns"}


def translate(line: dict[str, Any]) -> Iterator[events.Event]:
    """What one line says."""
    kind = values.text(line, "type")
    if kind == "init":
        yield events.Session(id=values.text(line, "session_id"), model=values.text(line, "model"))
    elif kind == "message":
        if line.get("role") == "assistant":
            yield events.Said(text=values.text(line, "content"), is_more=line.get("delta") is True)
    elif kind == "tool_use":
        yield events.ToolCall(
            id=values.text(line, "tool_id"),
            name=values.text(line, "tool_name"),
            arguments=values.compact(line.get("parameters")),
        )
    elif kind == "tool_result":
        yield events.ToolResult(
            id=values.text(line, "tool_id"),
            is_error=line.get("status") != "success",
            text=values.text(line, "output") or values.problem(line.get("error")),
        )
    elif kind == "error":
        problem = values.problem(line.get("message") or line.get("error"))
        yield events.Warned(problem=problem, gives_up=_GIVES_UP.get(problem, ""))
    elif kind == "result":
        yield from _result(line)


def _result(line: dict[str, Any]) -> Iterator[events.Event]:
    stats = line.get("stats")
    if isinstance(stats, dict):
        cached = values.count(stats, "cached") or 0
        fresh = values.count(stats, "input")
        yield events.Spent(
            tokens=wire.Tokens(
                input=max(0, (values.count(stats, "input_tokens") or 0) - cached) if fresh is None else fresh,
                cached_input=cached,
                output=values.count(stats, "output_tokens") or 0,
            )
        )
    is_error = line.get("status") != "success"
    name = values.text(line, "error", "type")
    yield events.Finished(
        is_error=is_error,
        kind=(_KINDS.get(name, name) or "error") if is_error else "",
        problem=values.problem(line.get("error")) if is_error else "",
    )

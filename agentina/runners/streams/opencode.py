"""opencode's ``run --format json``: one JSON object a line.

There is no last word: a step that ends with reason ``stop`` is it. Tokens and cost are each step's own. A tool is only
told of when it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agentina.protocol import wire
from agentina.runners.streams import events, values

_WORKS_ON: Final = frozenset({"tool-calls", "unknown", ""})


def translate(line: dict[str, Any]) -> Iterator[events.Event]:
    """What one line says."""
    kind, part = values.text(line, "type"), line.get("part")
    if values.text(line, "sessionID"):
        yield events.Session(id=values.text(line, "sessionID"))
    if kind == "step_start":
        yield events.Turn(values.text(part, "messageID"))
    elif kind == "text":
        yield events.Said(text=values.text(part, "text"))
    elif kind == "tool_use":
        yield from _tool(part)
    elif kind == "step_finish":
        yield from _step(part)
    elif kind == "error":
        error = line.get("error")
        status = values.count(error, "data", "statusCode")
        yield events.Finished(
            is_error=True,
            kind=f"api-{status}" if status else values.text(error, "name") or "error",
            problem=values.text(error, "data", "message") or values.problem(error) or values.text(error, "name"),
        )


def _tool(part: Any) -> Iterator[events.Event]:
    state = values.at(part, "state")
    identity = values.text(part, "callID")
    yield events.ToolCall(
        id=identity, name=values.text(part, "tool"), arguments=values.compact(values.at(state, "input"))
    )
    yield events.ToolResult(
        id=identity,
        is_error=values.text(state, "status") == "error" or bool(values.at(state, "metadata", "exit")),
        text=values.text(state, "output") or values.text(state, "error"),
    )


def _step(part: Any) -> Iterator[events.Event]:
    tokens = values.at(part, "tokens")
    if isinstance(tokens, dict):
        used = wire.Tokens(
            input=values.count(tokens, "input") or 0,
            cached_input=values.count(tokens, "cache", "read") or 0,
            cache_write=values.count(tokens, "cache", "write") or 0,
            output=(values.count(tokens, "output") or 0) + (values.count(tokens, "reasoning") or 0),
            reasoning=values.count(tokens, "reasoning") or 0,
        )
        yield events.Spent(tokens=used, cost_usd=values.amount(part, "cost"), is_total=False)
        yield events.Context(tokens=used.input + used.cached_input + used.cache_write)
    reason = values.text(part, "reason")
    if reason == "stop":
        yield events.Finished()
    elif reason not in _WORKS_ON:
        yield events.Finished(is_error=True, kind=reason, problem=f"the model's answer ended with {reason!r}")

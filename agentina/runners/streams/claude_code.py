"""Claude Code's ``--output-format stream-json --verbose``: one JSON object a line.

What it does that one would not expect: a failed call of the model ends in ``"subtype": "success"`` with
``"is_error": true``; each content block of an answer is a line of its own with the same message id; ``usage`` in those
lines is what was known when the answer began (output 1), so only the totals in ``result`` count, and of them
``modelUsage`` (all calls) rather than ``usage`` (without those of subagents). They go on from what a resumed session
had (2.1.330; 2.1.197 began anew). Several results may come: the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agentina.protocol import wire
from agentina.runners.streams import events, values

#: Model of messages that the command line makes up: errors in the form of an answer.
_SYNTHETIC: Final = "<synthetic>"


def translate(line: dict[str, Any]) -> Iterator[events.Event]:
    """What one line says."""
    kind = values.text(line, "type")
    if kind == "system":
        yield from _system(line)
    elif kind == "assistant":
        yield from _assistant(line)
    elif kind == "user":
        for block in values.objects(values.at(line, "message", "content")):
            if block.get("type") == "tool_result":
                yield events.ToolResult(
                    id=values.text(block, "tool_use_id"),
                    is_error=block.get("is_error") is True,
                    text=values.compact(block.get("content") or ""),
                )
    elif kind == "result":
        yield from _result(line)


def _system(line: dict[str, Any]) -> Iterator[events.Event]:
    kind = line.get("subtype")
    if kind == "init":
        yield events.Session(
            id=values.text(line, "session_id"),
            model=values.text(line, "model"),
            version=values.text(line, "claude_code_version"),
        )
        yield events.Context(window=_window(values.text(line, "model")))
    elif kind == "api_retry":
        status = values.count(line, "error_status")
        words = values.text(line, "error") or "no answer"
        yield events.Retry(problem=words if status is None else f"{words} ({status})")
    elif kind == "permission_denied":
        yield events.Denied(values.text(line, "tool_name"))
    elif kind == "compact_boundary":
        yield events.Context(tokens=values.count(line, "compact_metadata", "post_tokens"))


def _window(model: str) -> int | None:
    """Tokens of a model's context, where its name tells: it says so itself only in the end."""
    return 1_000_000 if model.endswith("[1m]") else None


def _assistant(line: dict[str, Any]) -> Iterator[events.Event]:
    message = line.get("message")
    if values.text(message, "model") == _SYNTHETIC:
        blocks = values.objects(values.at(message, "content"))
        yield events.Warned(problem=" ".join(filter(None, (values.text(block, "text") for block in blocks))))
        return
    yield events.Turn(values.text(message, "id"))
    is_main = line.get("parent_tool_use_id") is None
    for block in values.objects(values.at(message, "content")):
        if block.get("type") == "text" and is_main:
            yield events.Said(text=values.text(block, "text"))
        elif block.get("type") == "tool_use":
            yield events.ToolCall(
                id=values.text(block, "id"),
                name=values.text(block, "name"),
                arguments=values.compact(block.get("input")),
            )
    usage = values.at(message, "usage")
    if is_main and isinstance(usage, dict):
        parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        yield events.Context(tokens=sum(values.count(usage, part) or 0 for part in parts))


def _result(line: dict[str, Any]) -> Iterator[events.Event]:
    by_model = line.get("modelUsage")
    models = values.objects(list(by_model.values())) if isinstance(by_model, dict) else []
    yield events.Session(id=values.text(line, "session_id"))
    yield events.Spent(tokens=_tokens(line, models), cost_usd=values.amount(line, "total_cost_usd"), is_of_session=True)
    windows = [values.count(usage, "contextWindow") for usage in models]
    yield events.Context(window=max((window for window in windows if window), default=None))
    yield _finished(line)


def _tokens(line: dict[str, Any], models: list[dict[str, Any]]) -> wire.Tokens | None:
    names = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "outputTokens", "thinkingTokens")
    if not models:
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens", "")
        usage = line.get("usage")
        if not isinstance(usage, dict):
            return None
        models = [usage]
    total = wire.Tokens()
    for usage in models:
        input_, cached, written, output, reasoning = (values.count(usage, name) or 0 for name in names)
        part = wire.Tokens(input=input_, cached_input=cached, cache_write=written, output=output, reasoning=reasoning)
        total = values.add(total, part)
    return total


def _finished(line: dict[str, Any]) -> events.Finished:
    subtype = values.text(line, "subtype")
    denials = line.get("permission_denials")
    is_error = subtype != "success" or line.get("is_error") is not False
    answer = values.text(line, "result")
    words = line.get("errors")
    told = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    status = values.count(line, "api_error_status")
    kind = "" if not is_error else subtype.removeprefix("error_").replace("_", "-")
    if kind in {"success", ""} and is_error:
        kind = "error" if status is None else f"api-{status}"
    return events.Finished(
        is_error=is_error,
        answer=None if is_error else answer,
        kind=kind,
        problem=(answer or "; ".join(told)) if is_error else "",
        turns=values.count(line, "num_turns"),
        denials=len(denials) if isinstance(denials, list) else None,
    )

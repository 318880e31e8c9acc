"""Values out of decoded JSON that nobody promised anything about."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from agentina.protocol import wire

_MOST: Final = (1 << 53) - 1
_LEVELS: Final = 4


def text(document: Any, *path: str) -> str:
    """The text at ``path`` in nested objects; empty when there is none."""
    found = at(document, *path)
    return found if isinstance(found, str) else ""


def at(document: Any, *path: str) -> Any:
    """The value at ``path`` in nested objects; None when there is none."""
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; none when it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count(document: Any, *path: str) -> int | None:
    """The number of something at ``path``, None when there is none that makes sense."""
    found = at(document, *path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= _MOST:
        return None
    return int(found)


def amount(document: Any, *path: str) -> float | None:
    """The amount of money at ``path``, None when there is none that makes sense."""
    found = at(document, *path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= _MOST:
        return None
    return float(found)


def compact(value: Any) -> str:
    """``value`` as JSON; a text stays as it is."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def problem(words: Any) -> str:
    """An error's message for people: some pass an upstream's JSON answer on as their own words."""
    for _ in range(_LEVELS):
        if isinstance(words, str) and words.lstrip().startswith("{"):
            try:
                words = msgspec.json.decode(words)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                return str(words)
        if not isinstance(words, dict):
            break
        words = words.get("error", words.get("message", words.get("data", "")))
    return words if isinstance(words, str) else ""


def add(one: wire.Tokens, other: wire.Tokens) -> wire.Tokens:
    """The sum of two counts."""
    return wire.Tokens(
        input=min(_MOST, one.input + other.input),
        cached_input=min(_MOST, one.cached_input + other.cached_input),
        cache_write=min(_MOST, one.cache_write + other.cache_write),
        output=min(_MOST, one.output + other.output),
        reasoning=min(_MOST, one.reasoning + other.reasoning),
    )

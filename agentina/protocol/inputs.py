"""Turn decoded documents into structs with errors that name the path, and what was meant by an unknown key."""

from __future__ import annotations

import collections
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from agentina import errors

T = TypeVar("T")

#: How to read what people write for a number (:mod:`agentina.protocol.units`), by key; ValueError: it is none.
Measures = Mapping[str, Callable[[str], float]]

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<key>.*?)`(?: - at `\$?(?P<path>.*)`)?$", re.DOTALL)
_LOCATED: Final = re.compile(r"(?P<problem>.*?)(?: - at `\$?(?P<path>.*)`)?$", re.DOTALL)


def convert(document: object, kind: type[T], where: str) -> T:
    """Validate ``document`` as ``kind``; ``where`` is the name the error's path starts with.

    Raises:
        AgentinaError: ``INPUT_UNKNOWN_KEY`` or ``INPUT_INVALID``.

    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise explain(error, kind, where) from error
    except RecursionError as error:
        raise errors.INPUT_INVALID(where=where, problem="the document is nested too deeply") from error
    except UnicodeEncodeError as error:
        # JSON can write half of a surrogate pair; no text contains it.
        raise errors.INPUT_INVALID(where=where, problem="a character is half of a surrogate pair") from error


def measured(document: object, measures: Measures, where: str) -> object:
    """``document`` with numbers where people wrote a size or duration as text, such as ``512MiB``.

    Raises:
        AgentinaError: ``INPUT_INVALID``, naming the key.

    """
    if not isinstance(document, dict):
        return document
    written = [key for key in measures if isinstance(document.get(key), str)]
    if not written:
        return document
    plain = dict(document)
    for key in written:
        try:
            plain[key] = measures[key](plain[key])
        except ValueError as error:
            raise errors.INPUT_INVALID(where=f"{where}.{key}", problem=str(error)) from error
    return plain


def decode(body: bytes, kind: type[T], where: str, *, limit: int) -> T:
    """Decode JSON ``body`` of at most ``limit`` bytes as ``kind``.

    Raises:
        AgentinaError: ``INPUT_TOO_LARGE``, ``INPUT_UNREADABLE``, ``INPUT_UNKNOWN_KEY`` or ``INPUT_INVALID``.

    """
    if len(body) > limit:
        raise errors.INPUT_TOO_LARGE(where=where, size=len(body), limit=limit)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise explain(error, kind, where) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.INPUT_UNREADABLE(where=where, problem=str(error) or "nested too deeply") from error


def explain(error: msgspec.ValidationError, kind: Any, where: str) -> errors.AgentinaError:
    """The catalogue error for a validation error of msgspec."""
    text = str(error)
    unknown = _UNKNOWN.match(text)
    if unknown is not None:
        path = where + (unknown["path"] or "")
        known = _known_keys(kind, unknown["path"] or "")
        key = unknown["key"][:80]
        is_case = unknown["key"].casefold() in {one.casefold() for one in known}
        place = "" if is_case else _place_of(unknown["key"], kind)
        suggestion = _did_you_mean(place) if place else suggest(unknown["key"], known)
        return errors.INPUT_UNKNOWN_KEY(where=path, key=key, suggestion=suggestion, known=", ".join(known))
    located = _LOCATED.match(text)
    assert located is not None
    problem = located["problem"][:1].lower() + located["problem"][1:]
    return errors.INPUT_INVALID(where=where + (located["path"] or ""), problem=problem)


def suggest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, in brackets, whatever its case; or nothing."""
    words = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(word.casefold(), words, n=1)
    return _did_you_mean(words[near[0]]) if near else ""


def _did_you_mean(word: str) -> str:
    return f" (did you mean {word!r}?)"


def _place_of(key: str, kind: Any) -> str:
    """Where in a document of this kind a key belongs, the nearest place to the top; nothing if nowhere."""
    places = collections.deque([("", kind)])
    seen = set()
    while places:
        above, kind = places.popleft()
        for struct in _parts(kind):
            if not _is_struct(struct) or struct in seen:
                continue
            seen.add(struct)
            for field in msgspec.structs.fields(struct):
                if field.encode_name.casefold() == key.casefold():
                    return above + field.encode_name
                places.append((f"{above}{field.encode_name}.", field.type))
    return ""


def _known_keys(kind: Any, path: str) -> list[str]:
    """The keys a struct has at ``path`` (``.resources`` or ``[0].payload``), following field types."""
    for step in re.findall(r"\.([A-Za-z_]\w*)|\[", path):
        kind = _inside(kind, step)
    kind = next((part for part in _parts(kind) if _is_struct(part)), None)
    return [] if kind is None else [field.encode_name for field in msgspec.structs.fields(kind)]


def _inside(kind: Any, step: str) -> Any:
    for part in _parts(kind):
        if step and _is_struct(part):
            return next((f.type for f in msgspec.structs.fields(part) if f.encode_name == step), None)
        arguments = typing.get_args(part)
        if not step and arguments:
            return arguments[-1]
    return None


def _parts(kind: Any) -> list[Any]:
    """The alternatives of a union, without ``Annotated`` wrappers."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in {typing.Union, type(int | str)}:
        return [part for alternative in typing.get_args(kind) for part in _parts(alternative)]
    return [kind]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)

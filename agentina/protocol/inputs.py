"""Turn decoded documents into structs with errors that name the path, and what was meant by an unknown key."""

from __future__ import annotations

import bisect
import collections
import contextlib
import difflib
import enum
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from agentina import errors

T = TypeVar("T")

#: How to read what people write for a number (:mod:`agentina.protocol.units`), by key; ValueError: it is none.
Measures = Mapping[str, Callable[[str], float]]

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<key>.*?)`(?: - at `\$?(?P<path>.*)`)?$", re.DOTALL)
_LOCATED: Final = re.compile(r"(?P<problem>.*?)(?: - at `(?P<of_key>key` in `)?\$?(?P<path>.*)`)?$", re.DOTALL)
_BAD_ENUM: Final = re.compile(r"Invalid enum value '(?P<word>.*)'$", re.DOTALL)
#: Where text is expected, a word that YAML and JSON read as something else.
_UNQUOTED: Final = re.compile(r"Expected `str\b.*`, got `(?:int|float|bool)`$")
#: How msgspec writes the key of a mapping's value.
_SOME_KEY: Final = "[...]"


def convert(document: object, kind: type[T], where: str) -> T:
    """Validate ``document`` as ``kind``; ``where`` is the name the error's path starts with.

    Raises:
        AgentinaError: ``INPUT_UNKNOWN_KEY`` or ``INPUT_INVALID``.

    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise explain(error, kind, where, document) from error
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


def decode_yaml(content: bytes, where: str) -> Any:
    """Decode the one YAML document of a settings file; None: there is none.

    Raises:
        AgentinaError: ``INPUT_UNREADABLE``, with line and column.

    """
    import yaml  # noqa: PLC0415 - processes without such files do not pay for it

    with explaining_yaml(where):
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            check_keys(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()


@contextlib.contextmanager
def explaining_yaml(where: str) -> Iterator[None]:
    """What PyYAML raises in here becomes ``INPUT_UNREADABLE``, with line and column."""
    import yaml  # noqa: PLC0415 - see above

    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = where if mark is None else f"{where}, line {mark.line + 1}, column {mark.column + 1}"
        raise errors.INPUT_UNREADABLE(where=place, problem=error.problem or "it is not YAML") from error
    except RecursionError as error:
        raise errors.INPUT_UNREADABLE(where=where, problem="it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: not UTF-8, or a day that no calendar has.
        raise errors.INPUT_UNREADABLE(where=where, problem=" ".join(str(error).split())) from error


def check_keys(top: Any) -> None:
    """Refuse a key that is written twice in a document of YAML, given as its node or None.

    PyYAML takes the last, and of two rules of a policy nobody would see one.

    Raises:
        yaml.constructor.ConstructorError: There is one; see :func:`explaining_yaml`.

    """
    import yaml  # noqa: PLC0415 - see above

    nodes, seen = collections.deque([top]), set()
    while nodes:
        node = nodes.popleft()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
            keys = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in keys:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                keys.add((key.tag, key.value))


def explain(error: msgspec.ValidationError, kind: Any, where: str, document: object = None) -> errors.AgentinaError:
    """The catalogue error for a validation error of msgspec; with the document its path has the keys of mappings."""
    text = str(error)
    unknown = _UNKNOWN.match(text)
    found = unknown or _LOCATED.match(text)
    assert found is not None
    path = found["path"] or ""
    place = where + (path if document is None else _with_keys(path, text, document, kind))
    if unknown is not None:
        known = _known_keys(kind, path)
        is_case = unknown["key"].casefold() in {one.casefold() for one in known}
        elsewhere = "" if is_case else _place_of(unknown["key"], kind)
        suggestion = _did_you_mean(elsewhere) if elsewhere else suggest(unknown["key"], known)
        key = unknown["key"][:80]
        return errors.INPUT_UNKNOWN_KEY(where=place, key=key, suggestion=suggestion, known=", ".join(known))
    problem = found["problem"][:1].lower() + found["problem"][1:] + _hint(found["problem"], kind, path)
    return errors.INPUT_INVALID(where=place, problem=f"a key in it: {problem}" if found["of_key"] else problem)


def _hint(problem: str, kind: Any, path: str) -> str:
    """What to write instead, where that can be told."""
    if _UNQUOTED.match(problem):
        return " (put it in quotes)"
    bad = _BAD_ENUM.match(problem)
    words = [] if bad is None else _words_at(kind, path)
    return f"{suggest(bad['word'], words)}; expected one of {', '.join(words)}" if bad and words else ""


def _with_keys(path: str, error: str, document: Any, kind: Any) -> str:
    """``path`` of an error with the keys of mappings, of each the first one that makes it."""
    steps: list[Any] = []
    *above, rest = path.split(_SOME_KEY)
    named = ""
    for part in above:
        steps += [name or int(index) for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", part)]
        key = _first_key(document, steps, kind, error)
        if not isinstance(key, str):
            return path
        document = _put(document, steps, {key: _at(document, steps)[key]})
        steps.append(key)
        named += f"{part}.{key[:80]}"
    return named + rest


def _first_key(document: Any, steps: Sequence[Any], kind: Any, error: str) -> object:
    """The first key with whose value the mapping at ``steps`` makes ``error``; None if none is.

    It is found by halves: somebody who sends many keys does not get as many validations.
    """
    values = list(_at(document, steps).items())

    def makes(count: int) -> bool:
        return _error_of(_put(document, steps, dict(values[:count])), kind) == error

    count = bisect.bisect_left(range(len(values) + 1), x=True, key=makes)
    return values[count - 1][0] if 0 < count <= len(values) else None


def _error_of(document: Any, kind: Any) -> str:
    try:
        msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _at(document: Any, steps: Sequence[Any]) -> Mapping[Any, Any]:
    """The mapping that ``steps`` lead to; an empty one where there is none."""
    for step in steps:
        document = document[step]
    return document if isinstance(document, dict) else {}


def _put(document: Any, steps: Sequence[Any], value: Any) -> Any:
    """A copy of ``document`` with ``value`` at the place that ``steps`` lead to."""
    if not steps:
        return value
    first, *others = steps
    copy = list(document) if isinstance(document, list) else dict(document)
    copy[first] = _put(document[first], others, value)
    return copy


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
    kind = next((part for part in _parts(_kind_at(kind, path)) if _is_struct(part)), None)
    return [] if kind is None else [field.encode_name for field in msgspec.structs.fields(kind)]


def _words_at(kind: Any, path: str) -> list[str]:
    """The words of the enumeration at ``path``."""
    for part in _parts(_kind_at(kind, path)):
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return [str(one.value) for one in part]
        if typing.get_origin(part) is typing.Literal:
            return [str(one) for one in typing.get_args(part)]
    return []


def _kind_at(kind: Any, path: str) -> Any:
    for step in re.findall(r"\.([A-Za-z_]\w*)|\[", path):
        kind = _inside(kind, step)
    return kind


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

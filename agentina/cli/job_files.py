"""Read job files: YAML or JSON, bounded, with errors that name file and line.

YAML is read strictly. A key written twice is an error (the parser would silently keep the last one), and so is an alias
(``*name``): aliases let a small file grow without bound, and a job has no use for them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from agentina import errors
from agentina.protocol import inputs, jobs
from agentina.system import files

#: Kinds of plain words that YAML 1.1, which the library reads, finds where 1.2 does not, or the other way round.
_OTHER_THAN_IN_1_2: Final = frozenset({"bool", "timestamp", "int", "float"})
_STEP: Final = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]")


class _Loader(yaml.SafeLoader):
    """Plain data only; no aliases.

    Words are read by the rules of YAML 1.2: PyYAML's older ones would make the key ``on`` of a retry policy the value
    True, the word ``no`` False and ``2026-11-21`` a date.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _OTHER_THAN_IN_1_2]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not accepted", mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))
# Section 10.3.2 of the specification of 1.2; numbers with zeros before them are words, so that nobody has to guess.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?=\.?[0-9])(?:0|[1-9][0-9]*)?(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read(source: str) -> tuple[Any, jobs.JobSpec]:
    """Read and validate the only job in file ``source`` (``-``: stdin): the document as written, and the job.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``INPUT_TOO_LARGE``, ``INPUT_INVALID``,
            ``INPUT_UNKNOWN_KEY``, ``NAME_INVALID``.

    """
    where = _name_of(source)
    return parse(_read_bounded(source, where), where)


def read_all(source: str) -> list[Any]:
    """Read and validate the jobs in a file, documents divided by ``---``. Raises like :func:`read`."""
    where = _name_of(source)
    decoded = _decode(_text(_read_bounded(source, where), where), where)
    return [_validated(document, node, where)[0] for document, node in decoded]


def parse(content: bytes, where: str) -> tuple[Any, jobs.JobSpec]:
    """Decode and validate the only document of ``content``; ``where`` names it in errors."""
    decoded = _decode(_text(content, where), where)
    if len(decoded) > 1:
        _, second = decoded[1]
        place = where if second is None else f"{where}, line {second.start_mark.line + 1}"
        raise errors.INPUT_UNREADABLE(where=place, problem="a second document begins; one job is expected")
    document, node = decoded[0]
    return _validated(document, node, where)


def _name_of(source: str) -> str:
    return "stdin" if source == "-" else source


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise errors.INPUT_UNREADABLE(where=where, problem=f"byte {error.start} is not UTF-8") from error


def _validated(document: Any, node: yaml.Node | None, where: str) -> tuple[Any, jobs.JobSpec]:
    _check_text(document, where)
    if document is None:
        place = where if node is None else f"{where}, line {node.start_mark.line + 1}"
        raise errors.INPUT_INVALID(where=place, problem="it is empty; expected a job")
    try:
        return document, jobs.parse_job(document)
    except errors.AgentinaError as error:
        raise _located(error, node, where) from error


def _read_bounded(source: str, where: str) -> bytes:
    limit = jobs.MAX_JOB_BYTES
    try:
        if source == "-":
            content = sys.stdin.buffer.read(limit + 1)
            if len(content) > limit:
                raise errors.INPUT_TOO_LARGE(where=where, size=f"more than {limit}", limit=limit)
            return content
        return files.read_bounded(Path(source), limit=limit)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=where, problem=error.strerror or str(error)) from error


def _decode(text: str, where: str) -> list[tuple[Any, yaml.Node | None]]:
    """Each document, and its YAML nodes for finding lines (JSON is read as JSON: YAML forbids its tabs)."""
    if text.lstrip().startswith("{") and not where.endswith((".yaml", ".yml")):
        return [(_decode_json(text, where), None)]
    with inputs.explaining_yaml(where):
        loader = _Loader(text)
        try:
            found: list[tuple[Any, yaml.Node | None]] = []
            while loader.check_node():
                node = loader.get_node()
                inputs.check_keys(node)
                found.append((loader.construct_document(node), node))
            return found or [(None, None)]
        finally:
            loader.dispose()


def _decode_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}, column {error.colno}"
        raise errors.INPUT_UNREADABLE(where=place, problem=error.msg) from error
    except ValueError as error:
        raise errors.INPUT_UNREADABLE(where=where, problem=" ".join(str(error).split())) from error
    except RecursionError as error:
        raise errors.INPUT_UNREADABLE(where=where, problem="it is nested too deeply") from error


def _check_text(document: Any, where: str) -> None:
    """Refuse escapes of half a character (JSON and YAML can write a lone surrogate), which no UTF-8 can carry."""
    try:
        json.dumps(document, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        raise errors.INPUT_UNREADABLE(where=where, problem="a text in it holds half a character") from error
    except RecursionError as error:
        raise errors.INPUT_UNREADABLE(where=where, problem="it is nested too deeply") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return values


def _located(error: errors.AgentinaError, node: yaml.Node | None, where: str) -> errors.AgentinaError:
    """The same error with file and line in front of the path it names."""
    if error.entry is errors.NAME_INVALID:
        return errors.AgentinaError(error.entry, {**error.context, "what": f"{where}: {error.context['what']}"})
    path = str(error.context.get("where", ""))
    if not path.startswith("job"):
        return error
    line = _line_of(node, path, str(error.context.get("key", "")))
    place = f"{where}, line {line}" if line else where
    return errors.AgentinaError(error.entry, {**error.context, "where": f"{place}: {path}"})


def _line_of(node: yaml.Node | None, path: str, key: str) -> int | None:
    """The line of the deepest node on ``path`` (``job.needs[0]``), or of the unknown ``key`` in it."""
    steps: Sequence[tuple[str, str]] = _STEP.findall(path)
    if node is None:
        return None
    mark = node.start_mark
    for name, index in [*steps, *([(key, "")] if key else [])]:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == name), None)
            if found is None:
                break
            mark, node = found[0].start_mark, found[1]
        elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
            mark = node.start_mark
        else:
            break
    return int(mark.line) + 1

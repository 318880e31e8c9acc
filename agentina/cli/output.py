"""What commands print. stdout is the answer and nothing else; stderr is the talk.

With ``--json`` stdout holds exactly one JSON document: the answer, or ``{"error": {code, message, remedy, context}}``.
Text that came from elsewhere (job names, reasons, host names) passes :func:`clean` before it reaches a terminal, so
that no one can move a reader's cursor or recolour a table.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from agentina import errors
from agentina.protocol import units

#: Colour of a state, for terminals only; the word itself always carries the meaning.
_COLORS: Final = {
    "green": {"ok", "online", "succeeded", "active", "running", "healthy", "unused", "completed", "updated"},
    "yellow": {"warn", "warning", "offline", "draining", "queued", "assigned", "preparing", "finishing", "expired",
        "paused", "ordered"},
    "red": {
        "fail", "error", "failed", "timed-out", "out-of-memory", "lost", "refused", "quarantined", "stopped",
        "unhealthy", "revoked", "rolling-back", "rolled-back", "silent",
    },
}  # fmt: skip
_PAINT: Final = {word: color for color, words in _COLORS.items() for word in words}
_WIDEST_CELL: Final = 120
#: The last column keeps at least this, however narrow the terminal is.
_NARROWEST_CELL: Final = 20


def answer(text: str = "") -> None:
    """Print a line of the answer to stdout."""
    click.echo(text, color=colored(sys.stdout))


def say(text: str) -> None:
    """Print a line of talk to stderr."""
    click.echo(text, err=True, color=colored(sys.stderr))


def document(content: Any) -> None:
    """Print ``content`` (plain data or a struct) to stdout as one JSON document."""
    if hasattr(content, "__struct_fields__") or (isinstance(content, list) and content):
        import msgspec

        content = msgspec.to_builtins(content)
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def whole(content: Any) -> Any:
    """A struct as plain data with all its fields: on the wire those are left out that are as usual, such as zeros."""
    if hasattr(content, "__struct_fields__"):
        return {name: whole(getattr(content, name)) for name in content.__struct_fields__}
    return [whole(one) for one in content] if isinstance(content, list) else content


def failure(error: errors.AgentinaError, *, as_json: bool) -> None:
    """Print an error: for people on stderr, and with ``--json`` as the one document on stdout."""
    say(f"{paint('error', to=sys.stderr)}: {clean(error.message)}")
    say(f"  remedy: {clean(error.remedy)}")
    say(f"  code: {error.code}")
    if as_json:
        # Should nobody read it, or nothing keep it: stderr has it.
        with contextlib.suppress(BrokenPipeError, errors.AgentinaError):
            document(errors.to_wire(error))


class _Answer(io.FileIO):
    """stdout of a process: a write that fails says that it was the answer's, and later ones go nowhere."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            discard()
            raise errors.OUTPUT_UNWRITABLE(problem=error.strerror) from error


def open_streams() -> None:
    """Make the process's streams such that what is printed arrives, leads nowhere on purpose, or is an error."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        # Started without (a shell's `>&-`): the next file or socket would get the number, and what is printed with it.
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good
    was = sys.stdout
    assert isinstance(was, io.TextIOWrapper)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Answer(1, "w", closefd=False)), encoding=was.encoding, errors=was.errors,
        line_buffering=was.line_buffering,
    )  # fmt: skip


def discard() -> None:
    """Throw away whatever goes to stdout from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def colored(stream: Any) -> bool:
    """Whether to colour: a terminal, and nobody asked for plain text (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(getattr(stream, "isatty", lambda: False)())


def paint(word: str, *, to: Any = None) -> str:
    """``word`` in the colour of the state it names, when the stream is a terminal."""
    color = _PAINT.get(word)
    return click.style(word, fg=color) if color and colored(to or sys.stdout) else word


def clean(text: object) -> str:
    """``text`` on one line without control characters."""
    plain = str(text)
    return (
        plain if plain.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in plain)
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, ends_in_prose: bool = False) -> None:
    """Print rows in aligned columns under their headers; nothing but spaces between, so that awk and cut work.

    With ``ends_in_prose`` the last column is cut to what fits on a terminal's line; a pipe gets it whole.
    """
    cells = [[units.shorten(clean(cell), _WIDEST_CELL) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *cells]) for column in range(len(headers))]
    if ends_in_prose and sys.stdout.isatty():
        import shutil

        room = max(shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * len(widths[:-1]), _NARROWEST_CELL)
        cells = [[*row[:-1], units.shorten(row[-1], room)] for row in cells]
    answer("  ".join(header.ljust(width) for header, width in zip(headers, widths, strict=True)).rstrip())
    for row in cells:
        # Padding is counted before painting: colour codes have no width.
        padded = (paint(cell) + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True))
        answer("  ".join(padded).rstrip())


def pairs(rows: Sequence[tuple[str, object]], *, indent: int = 0) -> None:
    """Print ``name  value`` lines with the values aligned; rows whose value is empty are left out."""
    shown = [(name, str(value)) for name, value in rows if value not in {None, ""}]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        answer(f"{' ' * indent}{name.ljust(width)}  {value}".rstrip())


def moment(wall_ms: int | None) -> str:
    """A time for a table: ISO 8601 in UTC, or ``-``."""
    if wall_ms is None:
        return "-"
    from agentina.system import clock

    return clock.show_time(wall_ms)


def ago(wall_ms: int | None, now_ms: int) -> str:
    """How long ago, or ``never``."""
    if wall_ms is None:
        return "never"
    return f"{units.show_duration(max(now_ms - wall_ms, 0) / 1000)} ago"


def labels(values: dict[str, str]) -> str:
    """``key=value`` pairs, or ``-``."""
    return ",".join(f"{key}={value}" for key, value in sorted(values.items())) or "-"

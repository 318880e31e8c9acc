"""``agentina logs``: the daemon's own log, from the journal or from its file."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

import click

from agentina import errors
from agentina.cli import options
from agentina.system import services

_PIECE: Final = 65_536
#: Seconds between looks at a file that is followed; there is nothing to await without inotify.
_LOOK_AGAIN: Final = 0.25
_NEWLINE: Final = 0x0A


@click.command(epilog=options.examples("agentina logs", "agentina logs -f --instance coder-2"))
@options.instance_option
@click.option("--follow", "-f", is_flag=True, help="Go on as it is written.")
@click.option("--lines", "-n", type=click.IntRange(0, 100_000), default=100, show_default=True, help="How many.")
@options.root_option
def logs(instance: str, lines: int, *, follow: bool) -> None:
    """Show the daemon's log (for a job's output: `agentina job logs`)."""
    where = options.layout().instance(instance)
    if where.layout.is_system and services.runs_here() and not where.log.exists():
        command = ["journalctl", "--no-pager", "--unit", services.unit_of(instance), "--lines", str(lines)]
        os.execvp(command[0], [*command, "--follow"] if follow else command)  # noqa: S606 - journalctl takes over
    try:
        _print_file(where.log, lines=lines, follow=follow)
    except FileNotFoundError as error:
        if not where.config.exists():
            raise errors.INSTANCE_UNKNOWN(instance=instance, path=str(where.config)) from error
        raise errors.NOT_FOUND(what="log file", name=str(where.log)) from error


def _print_file(path: Path, *, lines: int, follow: bool) -> None:
    """Write the file's last lines to stdout, and with ``follow`` what comes after, also across a rotation."""
    write = sys.stdout.buffer
    file = path.open("rb")
    try:
        file.seek(_start_of_last(path, lines))
        while True:
            while piece := file.read(_PIECE):
                write.write(piece)
            write.flush()
            if not follow:
                return
            time.sleep(_LOOK_AGAIN)
            if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = path.open("rb")
    finally:
        file.close()


def _start_of_last(path: Path, lines: int) -> int:
    """The offset at which the last ``lines`` lines start, read from the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        position, seen = end, -1
        while position > 0:
            start = max(0, position - _PIECE)
            file.seek(start)
            piece = file.read(position - start)
            if position == end and not piece.endswith(b"\n"):
                seen = 0  # the last line has no end yet and counts
            for offset in range(len(piece) - 1, -1, -1):
                if piece[offset] == _NEWLINE:
                    seen += 1
                    if seen == lines:
                        return start + offset + 1
            position = start
    return 0

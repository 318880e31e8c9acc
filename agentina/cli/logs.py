"""``agentina logs``: the daemon's own log, from the journal or from its file."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import click

from agentina import errors
from agentina.cli import options, output
from agentina.system import clock, journal, paths, services, users

#: Seconds between looks at a file that is followed; there is nothing to await without inotify.
_LOOK_AGAIN: Final = 0.25
_LINES: Final = 100


@click.command(
    epilog=options.examples(
        "agentina logs",
        "agentina logs -f --instance coder-2",
        "agentina logs --task job_01k2x.1",
        "agentina logs --since 2h",
    )
)
@options.instance_option
@click.option("--follow", "-f", is_flag=True, help="Go on as it is written.")
@click.option("--lines", "-n", type=click.IntRange(0, 100_000), help="How many [100; all with --since or --task].")
@click.option("--task", metavar="ID", help="Only what is about this task.")
@click.option("--since", type=options.Moment(), metavar="TIME", help="From then on: 2h (ago), or 2026-11-21T10:00.")
@options.root_option
def logs(instance: str, *, lines: int | None, task: str | None, since: float | None, follow: bool) -> None:
    """Show the daemon's log (for a job's output: `agentina job logs`).

    A service's log is in the systemd journal, with a field for each instance, job, task and error code; `journalctl`
    knows more ways to look at it. Elsewhere it is in a file.
    """
    where = options.layout().instance(instance)
    if lines is None and since is None and task is None:
        lines = _LINES
    if _is_in_journal(where):
        _check_journal(where)
        _become(journal_command(instance, lines=lines, task=task, since=since, follow=follow))
    wanted = Wanted(task=task, since=since)
    try:
        _print_file(where.log, wanted, lines=lines, follow=follow)
    except FileNotFoundError as error:
        if not where.config.exists():
            raise errors.INSTANCE_UNKNOWN(instance=instance, path=str(where.config)) from error
        raise errors.NOT_FOUND(what="log file", name=str(where.log)) from error


def _is_in_journal(where: paths.InstancePaths) -> bool:
    """Whether the daemon logs to the journal: as a service. One that somebody started by hand has a file."""
    if not (where.layout.is_system and services.runs_here()):
        return False
    if not where.log.exists() or services.is_active(where.name):
        return True
    output.say(f"{services.unit_of(where.name)} does not run; this is {where.log}.")
    return False


def _check_journal(where: paths.InstancePaths) -> None:
    """Find out before journalctl is asked, whose own answer would be "No entries", or its own hints."""
    if not where.config.exists():
        raise errors.INSTANCE_UNKNOWN(instance=where.name, path=str(where.config))
    if not journal.is_readable():
        raise errors.LOG_FORBIDDEN(user=users.name_of(os.geteuid()), unit=services.unit_of(where.name))


def journal_command(
    instance: str, *, lines: int | None, task: str | None, since: float | None, follow: bool
) -> list[str]:
    """The journalctl that shows it (journalctl(1)): a match on a field holds besides the one on the unit."""
    command = ["journalctl", "--no-pager", "--unit", services.unit_of(instance)]
    command += ["--unit", services.trial_of(instance)]
    # With --follow alone journalctl would begin with the last ten lines.
    command += ["--lines", "all" if lines is None else str(lines)]
    if since is not None:
        command += ["--since", f"@{since:.6f}"]
    if follow:
        command.append("--follow")
    if task is not None:
        command.append(f"AGENTINA_TASK={task}")
    return command


def _become(command: list[str]) -> NoReturn:
    try:
        os.execvp(command[0], command)  # noqa: S606 - journalctl takes over
    except OSError as error:
        raise errors.NOT_FOUND(what="program", name=command[0]) from error


class Wanted:
    """Which lines of the file are wanted. A traceback's lines are indented and belong to the line before them."""

    def __init__(self, *, task: str | None, since: float | None) -> None:
        """``since`` in seconds since the epoch; None for either: whatever it is."""
        self._task = None if task is None else re.compile(rb" task=%s(?= |$)" % re.escape(task.encode()))
        self._since = b"" if since is None else clock.show_time(int(since * 1000)).encode()
        self._is_wanted = not self._since and self._task is None

    def __call__(self, line: bytes) -> bool:
        """Whether to show ``line``; lines are asked about in their order."""
        if not line.startswith(b" "):
            self._is_wanted = line[: len(self._since)] >= self._since and (
                self._task is None or self._task.search(line) is not None
            )
        return self._is_wanted


def _print_file(path: Path, wanted: Wanted, *, lines: int | None, follow: bool) -> None:
    """Write the last wanted lines to stdout, and with ``follow`` what comes after, also across a rotation."""
    write = sys.stdout.buffer
    kept: collections.deque[bytes] = collections.deque(maxlen=lines)
    file = path.open("rb")
    try:
        with contextlib.suppress(FileNotFoundError), path.with_name(path.name + ".1").open("rb") as older:
            # Rotated right now, it is the file opened above.
            if not os.path.sameopenfile(older.fileno(), file.fileno()):
                kept.extend(filter(wanted, older))
        kept.extend(filter(wanted, file))
        write.writelines(kept)
        write.flush()
        if not kept and lines != 0:
            output.say(f"{path} has no such line.")
        while follow:
            time.sleep(_LOOK_AGAIN)
            # Looked at before the rest is read: nothing is written to a file after it was rotated.
            is_rotated = path.exists() and not os.path.samestat(path.stat(), os.fstat(file.fileno()))
            write.writelines(filter(wanted, file))
            write.flush()
            if is_rotated:
                file.close()
                file = path.open("rb")
    finally:
        file.close()

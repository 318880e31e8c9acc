"""What a task used, written down where it survives: a file in the task's directory that only grows.

One line an entry: CRC-32 in eight hex digits, a space, JSON. ``ask`` is written before a call is sent, ``end`` (made
durable with fdatasync) before its answer is over for the task. So after a kill or a power cut every call whose end the
task has seen is counted exactly, and one that was under way is found by its ``ask`` and counted in full. A line that
was cut off is the last one, and is dropped. One process at a time writes it, as flock(2) holds: the gateway of a daemon
that was killed may still be ending when that of the next one begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.gateway import budgets
from agentina.protocol import budgets as protocol_budgets
from agentina.protocol import jobs
from agentina.system import files

NAME: Final = "gateway.log"
#: Largest record read, in bytes: two lines of some 200 bytes for each call.
_MAX: Final = 64 << 20
#: Refused hosts written down; more are counted only.
_MAX_REFUSED: Final = 200


class Began(msgspec.Struct, frozen=True, kw_only=True, tag="began", tag_field="kind"):
    """The gateway serves the task for the first time."""

    at_ms: int
    #: The same on the clock since boot, which nobody sets, in seconds; None in records of older releases.
    boot: float | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="ask", tag_field="kind"):
    """A call is about to be sent."""

    number: int
    model: str
    reserved: budgets.Charge
    #: The day (UTC) whose budgets it is charged to; empty in records of older releases: that of its end.
    day: str = ""


class Filled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How full the context of a model was at a call."""

    #: By :func:`agentina.gateway.calls.conversation`.
    conversation: str
    #: What it was given, in tokens, and how much it takes; 0: not known.
    tokens: int
    window: int = 0


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="kind"):
    """A call is over."""

    number: int
    #: How (:class:`agentina.gateway.calls.End`).
    end: str
    #: None: it used nothing.
    charge: budgets.Charge | None = None
    at_ms: int = 0
    #: None: it was not a call of the task's main conversation, or its provider did not say.
    context: Filled | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refused", tag_field="kind"):
    """Something was refused to the task, the first time for that reason."""

    code: str
    #: ``scope``, ``policy``, ``address``, a kind of budget, …
    reason: str
    host: str = ""
    at_ms: int = 0


class Reached(msgspec.Struct, frozen=True, kw_only=True, tag="reached", tag_field="kind"):
    """The task reached a host, the first time."""

    #: With its port.
    host: str
    at_ms: int = 0


class Carried(msgspec.Struct, frozen=True, kw_only=True, tag="carried", tag_field="kind"):
    """Bytes that came to the task and that it sent, in all so far."""

    received: int
    sent: int


class Raised(msgspec.Struct, frozen=True, kw_only=True, tag="limits", tag_field="kind"):
    """Other limits hold from here on."""

    limits: jobs.Budget


Entry = Began | Asked | Ended | Refusal | Reached | Carried | Raised
_decoder: Final = msgspec.json.Decoder(Entry)


class Story(msgspec.Struct, kw_only=True):
    """What a record says, read to its end."""

    began: Began | None = None
    totals: budgets.Totals = budgets.Totals()
    #: The same by day and model.
    spent: dict[tuple[str, str], budgets.Totals] = {}
    #: Of the main conversation, as its last call had it; None: nothing is known of any.
    context: Filled | None = None
    limits: jobs.Budget | None = None
    #: Calls that were sent and have no end.
    open: dict[int, Asked] = {}
    refusals: list[Refusal] = []
    #: Hosts that were reached, with their ports, as they came.
    reached: list[str] = []
    #: None: nothing was said of it.
    carried: Carried | None = None
    last_number: int = 0
    #: Bytes of whole lines; what follows was cut off.
    size: int = 0

    def take(self, entry: Entry) -> None:
        """Go on by one entry."""
        if isinstance(entry, Began):
            self.began = entry
        elif isinstance(entry, Asked):
            self.open[entry.number] = entry
            self.last_number = max(self.last_number, entry.number)
        elif isinstance(entry, Ended):
            asked = self.open.pop(entry.number, None)
            self.context = entry.context or self.context
            if asked is not None and entry.charge is not None:
                self._count(asked, entry.charge, entry.at_ms)
        elif isinstance(entry, Refusal):
            self.refusals.append(entry)
        elif isinstance(entry, Reached):
            self.reached.append(entry.host)
        elif isinstance(entry, Carried):
            self.carried = entry
        else:
            self.limits = entry.limits

    def usage(self) -> list[protocol_budgets.ModelUsage]:
        """What was used, by day and model."""
        return [
            protocol_budgets.ModelUsage(
                day=day, model=model, calls=total.calls, estimated=total.estimated, unpriced=total.unpriced,
                cost_nano=total.cost_nano, tool_calls=total.tool_calls, **msgspec.structs.asdict(total.used),
            )
            for (day, model), total in self.spent.items()
        ]  # fmt: skip

    def conclude(self) -> None:
        """Nothing of the task runs any more: calls that a killed gateway left are charged in full."""
        for number, asked in list(self.open.items()):
            self.take(Ended(number=number, end="interrupted", charge=asked.reserved))

    def _count(self, asked: Asked, charge: budgets.Charge, at_ms: int) -> None:
        self.totals = self.totals.plus(charge)
        key = (asked.day or protocol_budgets.day_of(at_ms), asked.model)
        if key not in self.spent and len(self.spent) >= protocol_budgets.MAX_ROWS:
            key = (key[0], protocol_budgets.OTHER)
        self.spent[key] = self.spent.get(key, budgets.Totals()).plus(charge)


def parse(content: bytes) -> Story:
    """Read a record; at the first line that is damaged or cut off it ends.

    Whole lines that mean nothing here are a newer release's, and are passed over.
    """
    story = Story()
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or zlib.crc32(line[9:-1]) != int(line[:8], 16):
                break
        except ValueError:
            break
        story.size += len(line)
        with contextlib.suppress(msgspec.MsgspecError):
            story.take(_decoder.decode(line[9:-1]))
    return story


def read(directory: Path) -> Story | None:
    """What a task used, as far as its record says; None: there is none, or it cannot be read."""
    try:
        return parse(files.read_bounded(directory / NAME, limit=_MAX))
    except (OSError, errors.AgentinaError):
        return None


def wait_until_free(directory: Path) -> None:
    """Return when no process has a task's record open for writing. Blocks.

    Raises:
        AgentinaError: ``STATE_UNWRITABLE`` or ``DISK_FULL``.

    """
    descriptor = _open(directory / NAME)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise files.from_os_error(error, path) from error


class Record:
    """One task's record, open for writing. Blocks, for a millisecond or so where ``durable``."""

    def __init__(self, directory: Path) -> None:
        """Open it, reading what is there.

        Raises:
            AgentinaError: ``STATE_UNWRITABLE`` (also where another process has it), ``DISK_FULL`` or
                ``INPUT_TOO_LARGE``.

        """
        self._path = directory / NAME
        self._descriptor = _open(self._path)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.story = parse(files.read_bounded(self._path, limit=_MAX))
            os.ftruncate(self._descriptor, self.story.size)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            raise files.from_os_error(error, self._path) from error
        except errors.AgentinaError:
            self.close()
            raise
        self._size = self.story.size

    def write(self, entry: Entry) -> None:
        """Append an entry; it survives the death of this process from here on.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``; the entry is then not there, not even in part.

        """
        if isinstance(entry, Refusal) and len(self.story.refusals) >= _MAX_REFUSED:
            return
        line = encode(entry)
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                os.ftruncate(self._descriptor, self._size)
                os.lseek(self._descriptor, self._size, os.SEEK_SET)
                raise errors.DISK_FULL(path=str(self._path))
        except OSError as error:
            raise files.from_os_error(error, self._path) from error
        self._size += len(line)
        self.story.take(entry)

    def sync(self) -> None:
        """Make everything written survive a power cut.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise files.from_os_error(error, self._path) from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def encode(entry: Entry) -> bytes:
    """One line."""
    body = msgspec.json.encode(entry)
    return b"%08x %s\n" % (zlib.crc32(body), body)

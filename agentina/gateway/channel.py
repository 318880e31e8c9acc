"""What the daemon and its gateway say to each other, over a socket pair: one JSON object a line."""

from __future__ import annotations

from typing import Final

import msgspec

from agentina.gateway import days, record
from agentina.protocol import budgets as protocol_budgets
from agentina.protocol import jobs

#: Longest line, in bytes: a task's lists of hosts.
MAX_LINE: Final = 4 << 20


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task's socket is to be."""

    directory: str
    #: Users other than the gateway's own may connect: who gets to the directory is the task alone.
    is_shared: bool = False


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open", tag_field="verb"):
    """Serve a task, from now on or again."""

    task_id: str
    #: Its directory; the record is there.
    directory: str
    #: None: it is not there yet; :class:`Listen` tells.
    door: Door | None = None
    #: SHA-256 of its token.
    digest: str
    #: Hosts of the job's scope, and those of the owner's policy (None: no restriction).
    scope: list[str] = []
    policy: list[str] | None = None
    limits: jobs.Budget = jobs.Budget()


class Listen(msgspec.Struct, frozen=True, kw_only=True, tag="listen", tag_field="verb"):
    """The task has started, and has a place for its socket now."""

    task_id: str
    door: Door


class Close(msgspec.Struct, frozen=True, kw_only=True, tag="close", tag_field="verb"):
    """The task has ended."""

    task_id: str


class Raise(msgspec.Struct, frozen=True, kw_only=True, tag="raise", tag_field="verb"):
    """Another budget holds."""

    task_id: str
    limits: jobs.Budget


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin", tag_field="verb"):
    """The first order to a new process: what was used before."""

    #: By tasks that ended: by day.
    spent: dict[str, protocol_budgets.Units] = {}
    #: By tasks of which more may come: by task and day.
    of_tasks: dict[str, dict[str, protocol_budgets.Units]] = {}


class Learn(msgspec.Struct, frozen=True, kw_only=True, tag="learn", tag_field="verb"):
    """Budgets of the day, in answer to :class:`Wanted` or before anything was asked."""

    known: days.Known
    #: Milliseconds that the control plane's clock is ahead of this host's clock since boot.
    ahead_ms: int = 0
    #: The control plane did not answer.
    is_away: bool = False


class Nudge(msgspec.Struct, frozen=True, kw_only=True, tag="nudge", tag_field="verb"):
    """Say something to the model of a task, with the next call that goes on from a tool's result."""

    task_id: str
    text: str


class Reload(msgspec.Struct, frozen=True, kw_only=True, tag="reload", tag_field="verb"):
    """Read settings and keys again."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened", tag_field="verb"):
    """The task is served, or why it is not."""

    task_id: str
    problem: str = ""


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed", tag_field="verb"):
    """The task is not served any more, and its record says all there is."""

    task_id: str


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused", tag_field="verb"):
    """Something was refused to a task, the first time for that reason and host."""

    task_id: str
    code: str
    reason: str = ""
    #: The host, or the model, it was about.
    host: str = ""
    message: str = ""


class Warned(msgspec.Struct, frozen=True, kw_only=True, tag="warned", tag_field="verb"):
    """Four fifths of a limit are used."""

    task_id: str
    text: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True, tag="wanted", tag_field="verb"):
    """What to ask the control plane for; answered by :class:`Learn`."""

    want: days.Want


class Parked(msgspec.Struct, frozen=True, kw_only=True, tag="parked", tag_field="verb"):
    """A task is held at a call because a budget is used up; with an empty reason it goes on."""

    task_id: str
    reason: str = ""


class Used(msgspec.Struct, frozen=True, kw_only=True, tag="used", tag_field="verb"):
    """What a task used by now, and how full its context is, as far as that is known."""

    task_id: str
    #: By day and model.
    usage: list[protocol_budgets.ModelUsage]
    context: record.Filled | None = None


class Nudged(msgspec.Struct, frozen=True, kw_only=True, tag="nudged", tag_field="verb"):
    """A model was told what a :class:`Nudge` says, and has answered."""

    task_id: str
    text: str


class Carried(msgspec.Struct, frozen=True, kw_only=True, tag="carried", tag_field="verb"):
    """How many bytes went to and from a task by now; told while that changes."""

    task_id: str
    total: int


Order = Begin | Learn | Open | Listen | Close | Raise | Nudge | Reload
Word = Opened | Closed | Refused | Warned | Used | Wanted | Parked | Carried | Nudged
orders: Final = msgspec.json.Decoder(Order)
words: Final = msgspec.json.Decoder(Word)


def line(message: Order | Word) -> bytes:
    """A message as it is sent."""
    return msgspec.json.encode(message) + b"\n"

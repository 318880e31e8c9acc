"""How an organization's budget of a day is divided among hosts. Pure; docs/explanation/budgets.md has the reasons.

What must hold, whatever is lost, late, repeated or killed, and is tested with generated histories:

- the shares that are *stored* are together never more than the limit (unless it was lowered below them);
- a host never believes in a larger share than the one stored for it: a share is lowered only to what the host promised
  before, and raised here first;
- so what all hosts use is never more than the limit.

A host gets what it needs, or nothing where that would be of no use to it: remains that every host holds a part of would
help nobody. It also gets a cushion so that it need not ask for each call: an eighth of what is free, which gets
smaller as the budget runs out, and which hosts give back when they hold more of it than they should.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from agentina.protocol import budgets

#: Part of what is free that a host gets beyond its need.
_CUSHION: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a host says, and what is stored for it and for the others."""

    limit: budgets.Bounds
    #: Used or promised to other hosts, whichever is more of each.
    others: budgets.Units
    #: This host's share as stored; None: it has none yet.
    stored: budgets.Units | None
    #: The host's promise; None: it believes in no share. Of no interest when it is older than what is stored.
    promise: budgets.Units | None
    spent: budgets.Units
    held: budgets.Units
    want: budgets.Units
    least: budgets.Units
    #: Nothing newer was heard of this host.
    is_newest: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """What to store, and what to tell the host."""

    stored: budgets.Units
    told: budgets.Bounds
    cushion: budgets.Units


def divide(request: Request) -> Division:
    """Decide on a host's share."""
    is_of_use = all(_is_of_use(request, kind) for kind in budgets.KINDS)
    parts = {kind: _divide_kind(request, kind, is_of_use=is_of_use) for kind in budgets.KINDS}
    return Division(
        stored=budgets.Units(**{kind: part[0] for kind, part in parts.items()}),
        told=budgets.Bounds(**{kind: part[1] for kind, part in parts.items()}),
        cushion=budgets.Units(**{kind: part[2] for kind, part in parts.items()}),
    )


def _is_of_use(request: Request, kind: str) -> bool:
    limit: int | None = getattr(request.limit, kind)
    promise = 0 if request.promise is None else getattr(request.promise, kind)
    base = max(promise, getattr(request.spent, kind))
    return limit is None or getattr(request.least, kind) <= max(base, limit - getattr(request.others, kind))


def _divide_kind(request: Request, kind: str, *, is_of_use: bool) -> tuple[int, int | None, int]:
    """Share to store, share to tell (None: no limit), cushion."""
    limit: int | None = getattr(request.limit, kind)
    spent: int = getattr(request.spent, kind)
    stored = 0 if request.stored is None else getattr(request.stored, kind)
    promise = 0 if request.promise is None else getattr(request.promise, kind)
    if not request.is_newest:
        # An older word may be about a share that was raised since: it changes nothing.
        return stored, None if limit is None else stored, 0
    # A promise above what is stored comes from before this side was restored from a backup; it is a fact, not a wish.
    base = max(promise, spent)
    if limit is None:
        return base, None, 0
    free = limit - getattr(request.others, kind) - base
    if free <= 0:
        # More is promised than there is: the host is told less, which becomes true when it has promised it.
        floor = spent + getattr(request.held, kind)
        return base, min(base, max(floor, base + free)), 0
    if not is_of_use:
        return base, base, 0
    need = max(0, getattr(request.want, kind) - base)
    cushion = max(0, free - need) // _CUSHION
    share = base + min(free, need + cushion)
    return share, share, cushion

"""What becomes of an agent's part in a rollout by what is known of it. Pure.

=============  =====================================================================  =============
standing       what is seen                                                           next
=============  =====================================================================  =============
pending        it runs the version, and was never told to                             current
pending        it runs the version after all, though its order was withdrawn          updated
pending        the same, and the rollout was halted or aborted                        rolling-back
current        it does not run the version any more                                   pending
ordered        the order is over, and it runs the version                             updated
ordered        it says that the version is bad                                        failed
ordered        inconclusive, or refused: asked again later, each time twice as late   pending
ordered        refused because the host skips the version, or cannot change releases, pending
               or an operator went back there: left out
ordered        not heard of for ten heartbeats (and did not say that it leaves)       silent
updated        it says that the version is bad, or runs an older one                  failed
updated        it runs a newer version: somebody went on                              pending
updated        not heard of for ten heartbeats                                        silent
silent         heard of again: as ordered
rolling-back   heard of since, runs another version, no update under way              rolled-back
rolled-back    acts on the order to upgrade after all: it was under way to it         rolling-back
=============  =====================================================================  =============

``failed`` is an end. Nobody is told to upgrade here: only the rollout does that.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

import msgspec

from agentina import errors
from agentina.control.rollouts import model, selection
from agentina.protocol import windows

_FIRST_PAUSE_MS: Final = 5 * 60_000
_LONGEST_PAUSE_MS: Final = 60 * 60_000
#: Reasons of hosts that asking again does not change: the version was bad there before, an operator went back, or
#: releases are nothing that the agent could change.
_FOR_GOOD: Final = frozenset({errors.RELEASE_SKIPPED.code, errors.UPDATER_MISSING.code, "operator"})
_OVER: Final = frozenset({"promoted", "rolled-back", "refused"})


def follow(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    """The agent's part now."""
    standing = member.standing
    if standing is model.Standing.SILENT and fact.is_online:
        standing = model.Standing.ORDERED
    step = _STEPS.get(standing)
    return member if step is None else step(rollout, member, fact, now_ms)


def _pending(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    if not _runs(rollout, fact):
        return member
    if member.attempt:
        if rollout.state in {model.State.ROLLING_BACK, model.State.ROLLED_BACK}:
            return _move(member, model.Standing.RETURNING, now_ms)
        return _updated(msgspec.structs.replace(member, stage=member.stage or rollout.stage), fact, now_ms)
    return _move(member, model.Standing.CURRENT, now_ms)


def _current(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    return member if fact.version == rollout.plan.version else _move(member, model.Standing.PENDING, now_ms)


def _ordered(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    report = fact.report
    if report is not None and report.id == model.order_id(rollout, member):
        if report.verdict == "bad":
            return _move(member, model.Standing.FAILED, now_ms, reason=_words(report.reason, report.detail))
        if report.verdict == "inconclusive" or report.state == "refused":
            return _withdrawn(member, report.reason, report.detail, now_ms)
    if _runs(rollout, fact):
        return _updated(member, fact, now_ms)
    if fact.is_silent and not fact.is_leaving:
        return _silent(member, now_ms)
    return _move(member, model.Standing.ORDERED, now_ms, reason="")


def _on_it(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    report = fact.report
    if report is not None and report.version == rollout.plan.version and report.verdict == "bad":
        return _move(member, model.Standing.FAILED, now_ms, reason=_words(report.reason, report.detail))
    if selection.is_newer(fact.version, rollout.plan.version):
        # Somebody went on from here: it has no part any more.
        return msgspec.structs.replace(_move(member, model.Standing.PENDING, now_ms), stage=0)
    if fact.version != rollout.plan.version:
        return _move(member, model.Standing.FAILED, now_ms, reason=f"it runs {fact.version or 'another version'} again")
    if fact.is_silent and not fact.is_leaving:
        return _silent(member, now_ms)
    return member


def _returning(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    if fact.heard_ms <= member.since_ms or fact.version == rollout.plan.version or is_busy(fact):
        return member
    return _move(member, model.Standing.RETURNED, now_ms)


def _returned(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    report = fact.report
    is_ours = report is not None and report.id == model.order_id(rollout, member)
    if not is_ours or not (is_busy(fact) or fact.version == rollout.plan.version):
        return member
    # Another attempt names another order: the host may have found nothing to do for the one before.
    again = msgspec.structs.replace(member, attempt=member.attempt + 1)
    return _move(again, model.Standing.RETURNING, now_ms)


_STEPS: Final = {
    model.Standing.PENDING: _pending,
    model.Standing.CURRENT: _current,
    model.Standing.ORDERED: _ordered,
    model.Standing.UPDATED: _on_it,
    model.Standing.RETURNING: _returning,
    model.Standing.RETURNED: _returned,
}


def _withdrawn(member: model.Member, reason: str, detail: str, now_ms: int) -> model.Member:
    """Nothing is held against the version; the agent is asked again later, unless its host never wants to."""
    pause = min(_FIRST_PAUSE_MS << min(member.attempt - 1, 10), _LONGEST_PAUSE_MS)
    moved = _move(member, model.Standing.PENDING, now_ms, reason=_words(reason, detail))
    return msgspec.structs.replace(moved, stage=0, not_before_ms=now_ms + pause, skipped=reason in _FOR_GOOD)


def _silent(member: model.Member, now_ms: int) -> model.Member:
    return _move(member, model.Standing.SILENT, now_ms, reason="it has not been heard of since")


def _updated(member: model.Member, fact: model.Fact, now_ms: int) -> model.Member:
    moved = _move(member, model.Standing.UPDATED, now_ms, reason="")
    return msgspec.structs.replace(moved, mark=fact.totals, mark_ms=now_ms)


def _move(member: model.Member, standing: model.Standing, now_ms: int, *, reason: str | None = None) -> model.Member:
    reason = member.reason if reason is None else reason[: model.MAX_REASON]
    if member.standing is standing and member.reason == reason:
        return member
    return msgspec.structs.replace(member, standing=standing, reason=reason, since_ms=now_ms)


def _runs(rollout: model.Rollout, fact: model.Fact) -> bool:
    """Whether it runs the version for good: a trial does not count."""
    return fact.version == rollout.plan.version and not is_busy(fact)


def is_busy(fact: model.Fact) -> bool:
    """Whether an update is under way on its host."""
    return fact.report is not None and not fact.report.verdict and fact.report.state not in _OVER


def _words(reason: str, detail: str) -> str:
    return f"{reason}: {detail}" if reason and detail else reason or detail or "no reason given"


# --- why an agent is not asked ---------------------------------------------------------------------------------------


class Kind(enum.Enum):
    """How long an obstacle stays."""

    #: The rollout goes on without it.
    AWAY = "away"
    #: Until an operator, or its host, decides otherwise.
    LASTING = "lasting"
    #: The rollout waits for it.
    PASSING = "passing"


class Obstacle(NamedTuple):
    """Why a pending agent is not asked."""

    kind: Kind
    text: str


def obstacle(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> Obstacle | None:
    """What stands between a pending agent and its order; None: nothing."""
    if text := _lasting(rollout, member, fact):
        return Obstacle(Kind.LASTING, text)
    if not fact.is_online:
        return Obstacle(Kind.AWAY, "it is offline")
    if text := _passing(rollout, member, fact, now_ms):
        return Obstacle(Kind.PASSING, text)
    return None


def _lasting(rollout: model.Rollout, member: model.Member, fact: model.Fact) -> str:
    for pin, whose in ((fact.pinned, "an operator"), (fact.host_pinned, "its host")):
        if pin not in {"", rollout.plan.version}:
            return f"{whose} pins it to {pin}"
    if fact.is_closed and fact.is_online:
        return "its host takes no settings: its release is too old, or its owner wants none"
    if member.skipped:
        return f"skipped: {member.reason}" if member.reason else "skipped"
    if selection.is_newer(fact.version, rollout.plan.version):
        return f"it runs {fact.version}, which is newer"
    return "it is in quarantine" if fact.is_quarantined else ""


def _passing(rollout: model.Rollout, member: model.Member, fact: model.Fact, now_ms: int) -> str:
    if is_busy(fact):
        return "another update is under way on its host"
    for window, whose in ((rollout.plan.window, "the rollout"), (fact.window, "its host")):
        if not _is_open(window, now_ms):
            return f"outside the window of {whose}, {window}"
    return f"is asked again later: {member.reason}" if now_ms < member.not_before_ms else ""


def _is_open(window: str, now_ms: int) -> bool:
    try:
        return windows.parse(window).is_open(now_ms)
    except errors.AgentinaError:
        return False  # what a host wrote and nobody understands is no permission

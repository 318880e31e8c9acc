"""Drives an update: asks the journal's rules what to do, lets the host do it, records what came of it.

The root updater runs :func:`drive` once: for a request, at boot, and whenever PID 1 says that a trial ended. It goes as
far as it can and may be killed anywhere; the next run goes on. What touches systemd, the network and the smoke check is
behind :class:`Host`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, Protocol

from agentina import errors
from agentina.updates import journal, releases
from agentina.updates.journal import Reason, State, Step

#: More steps than any update has; a host whose trial cannot be ended must not spin.
_MOST_STEPS: Final = 32
#: What refusals of a step mean for the version.
_REASONS: Final = {
    errors.UPDATE_UNTRUSTED.code: Reason.UNTRUSTED,
    errors.UPDATE_EXPIRED.code: Reason.UNTRUSTED,
    errors.RELEASE_ROOT_MISSING.code: Reason.UNTRUSTED,
    errors.UPDATE_UNREACHABLE.code: Reason.UNREACHABLE,
    errors.RELEASE_UNKNOWN.code: Reason.NOT_OFFERED,
    errors.RELEASE_UNSUITABLE.code: Reason.UNSUITABLE,
    errors.DISK_FULL.code: Reason.DISK_FULL,
}


class StepFailedError(Exception):
    """A step says that the version is not to be run, and why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(reason.value)


class Host(Protocol):
    """What an update does to a host. Every step may be done again from its beginning.

    A step raises :class:`StepFailedError` where the version is at fault or the step cannot be done, and errors of the
    catalogue; those that are not about the update (``STATE_UNWRITABLE``) end the run and are met again by the next.
    """

    def facts(self) -> journal.Facts:
        """What the host is like now."""
        ...

    def fetch(self, update: journal.Update) -> None:
        """Get signed metadata and the archive."""
        ...

    def verify(self, update: journal.Update) -> None:
        """Look at what was fetched: again by hash, and for this host."""
        ...

    def stage(self, update: journal.Update) -> None:
        """Unpack it under its version."""
        ...

    def smoke_check(self, update: journal.Update) -> None:
        """Run the new release's own check, under a time limit."""
        ...

    def begin_trial(self, update: journal.Update) -> None:
        """Let PID 1 stop the stable unit and start the trial."""
        ...

    def watch(self, update: journal.Update) -> str:
        """Return when the trial is good; raise :class:`StepFailedError` when it is not.

        What is returned could not be looked at on this host; empty: everything could.
        """
        ...

    def promote(self, update: journal.Update) -> None:
        """Move the links (:func:`promote_links`) and make the stable unit run the new release.

        Raises :class:`StepFailedError` when the trial did not end well, or the stable unit does not start.
        """
        ...

    def undo(self, update: journal.Update | None) -> None:
        """End the trial, move the links back (:func:`undo_links`), make sure that the stable unit runs.

        Without an update: end a trial that no journal knows.
        """
        ...


def drive(file: journal.File, host: Host) -> journal.Update | None:
    """Bring what is under way to its end, or as far as it goes; returns the update.

    Raises:
        AgentinaError: ``DISK_FULL``, ``STATE_UNWRITABLE`` and whatever a step raised that is not about the version.
            What runs is a version that ran before, or one whose trial was good.

    """
    for _ in range(_MOST_STEPS):
        facts = host.facts()
        decision = journal.plan(file.content, facts)
        if decision.step is Step.NONE:
            return file.content.update
        if decision.step is Step.UNDO:
            _undo(file, host, facts, decision)
        else:
            _do(file, host, decision.step)
    raise errors.STATE_CONFLICT(
        what="The update", state="not coming to an end", expected="a trial unit that systemd can stop"
    )


def _do(file: journal.File, host: Host, step: Step) -> None:
    """One step forward; where it fails, the decision to go back."""
    update = file.content.update
    assert update is not None
    acts: dict[Step, tuple[Callable[[journal.Update], str | None], State]] = {
        Step.FETCH: (host.fetch, State.FETCHED),
        Step.VERIFY: (host.verify, State.VERIFIED),
        Step.STAGE: (host.stage, State.STAGED),
        Step.SMOKE_CHECK: (host.smoke_check, State.SMOKE_CHECKED),
        Step.WATCH: (host.watch, State.PROMOTING),
        Step.PROMOTE: (host.promote, State.PROMOTED),
    }
    try:
        if step is Step.BEGIN_TRIAL:
            # Recorded first: whoever comes after a power cut must know that it may have begun.
            file.record(journal.advance(file.content, State.ON_TRIAL, file.now))
            host.begin_trial(update)
            return
        act, reached = acts[step]
        unproved = act(update) or ""
    except StepFailedError as failure:
        _go_back(file, failure.reason, failure.detail)
        return
    except errors.AgentinaError as error:
        reason = _REASONS.get(error.code)
        if reason is None or step is Step.PROMOTE:
            raise
        _go_back(file, reason, str(error))
        return
    try:
        file.record(journal.advance(file.content, reached, file.now, unproved=unproved))
    except errors.AgentinaError:
        if step is Step.WATCH:
            # A promotion that cannot be recorded does not happen, and a trial must not go on unwatched.
            host.undo(update)
        raise


def _go_back(file: journal.File, reason: Reason, detail: str) -> None:
    """Record the decision. Where that cannot be written the update is undone at its next look all the same."""
    with contextlib.suppress(errors.AgentinaError):
        file.record(journal.roll_back(file.content, reason, file.now, detail=detail))
        return
    file.content = journal.roll_back(file.content, reason, file.now, detail=detail)


def _undo(file: journal.File, host: Host, facts: journal.Facts, decision: journal.Decision) -> None:
    update = file.content.update
    if update is not None and update.state is State.PROMOTED:
        file.record(journal.note_rescue(file.content, facts, file.now))
    elif decision.reason is not None:
        _go_back(file, decision.reason, decision.detail)
    update = file.content.update
    if update is None or update.state is not State.ROLLING_BACK:
        host.undo(None)
        return
    host.undo(update)
    file.record(journal.advance(file.content, State.ROLLED_BACK, file.now))


def promote_links(store: releases.Store, instance: str, update: journal.Update) -> None:
    """Bind an instance to the release that was good, remembering the one before. Safe to repeat.

    The memory comes first: between the two moves both links name the old release, which runs.
    """
    store.link_previous(instance, update.before)
    store.link(instance, update.version)


def undo_links(store: releases.Store, instance: str, update: journal.Update) -> None:
    """Bind an instance to what it ran before. Safe to repeat."""
    store.link(instance, update.before)

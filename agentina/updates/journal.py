"""What is under way on this host: one journal an instance, and the rules of an update. The rules are pure.

An update's states, and what the updater does in each (:func:`plan`). A state is recorded, durably, *before* the step
that follows it; every step may be repeated from its beginning.

==================  ==========================================================  ======================
state               means                                                        next step
==================  ==========================================================  ======================
requested           somebody wants it                                            fetch
fetched             signed metadata and the archive are here                     verify
verified            hash, version, machine and Python fit this host              stage
staged              unpacked under its version, checked, durable                 smoke-check
smoke-checked       its own smoke check passed                                   begin the trial
on-trial            the trial is about to run, runs, or ran                      watch; see below
promoting           the trial was good; links may move                           promote; see below
promoted            the instance runs it                                         none
rolling-back        it shall not run; the reason is recorded                     undo
rolled-back         the instance runs what it ran before                         none
==================  ==========================================================  ======================

On trial, by what PID 1 says of the trial: *running* in this boot: watch on; *failed*: roll back with its reason;
*absent*, or another boot: nobody knows how far it came, so it is rolled back as inconclusive (``interrupted``) and may
be tried again, :data:`MOST_INTERRUPTED` times in all, for a release that takes the host down would else do it for ever.

Promoting it ends the trial, so that the stable unit can run the release from now on: one that ignores that it shall
end, or does not start this second time, is rolled back as well.

Three verdicts, by reason (:data:`REASONS`): *good*; *bad*: this host skips the version until told otherwise;
*inconclusive*: nothing is held against the version, it is tried again when somebody asks or the rollout does.

What can go wrong, and what follows:

==============================================  ========================================================================
power cut before a record                        the earlier state: its step is done again
power cut after a record, before or in its step  the step is done again
power cut while links move                       ``promoting`` or ``rolling-back`` is recorded: it is finished
power cut in the trial                           the trial is not enabled, so stable boots; rolled back, inconclusive
journal damaged                                  set aside; a trial that runs is undone, links stay as they are
disk full at a record before the trial           the updater ends; nothing was changed; it goes on where it was
disk full at the record of a good trial          the trial is ended; later: rolled back, inconclusive
disk full at a record of a rollback              the rollback is done all the same; recorded when there is room
the rescue helper moved the link (level 2)       seen by the link, which stays: rolled back for ``start-failure``
the same update again                            nothing changes
another update meanwhile                         refused (``STATE_CONFLICT``)
a version that is skipped here                   refused (``RELEASE_SKIPPED``) unless forced
a wish that was acted on before                  nothing changes, whatever became of it (its id is in the history)
a rollout takes back what is under way           rolled back before the next step, and in the midst of a trial
a wish of a rollout that is refused              recorded (:class:`Refusal`), for the report to the control plane
==============================================  ========================================================================
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agentina import errors
from agentina.system import clock as clocks
from agentina.system import files
from agentina.updates import versions

#: Trials of one update that may end for a reason nobody knows; the next one is bad.
MOST_INTERRUPTED: Final = 3
_MAX_JOURNAL: Final = 1 << 20
_MAX_SKIPPED: Final = 50
_MAX_HISTORY: Final = 20
_MAX_DETAIL: Final = 2000


class State(enum.Enum):
    """How far an update is; the table is in the module's description."""

    REQUESTED = "requested"
    FETCHED = "fetched"
    VERIFIED = "verified"
    STAGED = "staged"
    SMOKE_CHECKED = "smoke-checked"
    ON_TRIAL = "on-trial"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"


class Verdict(enum.Enum):
    """What a rollback says about the version."""

    #: It is broken here: skipped from now on.
    BAD = "bad"
    #: Nothing is known against it.
    INCONCLUSIVE = "inconclusive"


class Step(enum.Enum):
    """What the updater does next."""

    FETCH = "fetch"
    VERIFY = "verify"
    STAGE = "stage"
    SMOKE_CHECK = "smoke-check"
    BEGIN_TRIAL = "begin-trial"
    WATCH = "watch"
    PROMOTE = "promote"
    UNDO = "undo"
    NONE = "none"


class Reason(enum.Enum):
    """Why a version was rolled back."""

    UNTRUSTED = "untrusted"
    UNREACHABLE = "unreachable"
    NOT_OFFERED = "not-offered"
    DISK_FULL = "disk-full"
    UNSUITABLE = "unsuitable"
    SMOKE_CHECK_FAILED = "smoke-check-failed"
    START_FAILED = "start-failed"
    EXITED = "exited"
    CRASHED = "crashed"
    NOT_READY = "not-ready"
    WATCHDOG = "watchdog"
    OUT_OF_MEMORY = "out-of-memory"
    DEADLINE = "deadline"
    NO_HEARTBEAT = "no-heartbeat"
    LIMITS_NOT_HELD = "limits-not-held"
    TASKS_LOST = "tasks-lost"
    NOT_STOPPING = "not-stopping"
    CONTROL_PLANE_AWAY = "control-plane-away"
    INTERRUPTED = "interrupted"
    INTERRUPTED_OFTEN = "interrupted-often"
    START_FAILURE = "start-failure"
    OPERATOR = "operator"
    ROLLOUT = "rollout"


#: Each reason's verdict, and what it says to a person.
REASONS: Final[dict[Reason, tuple[Verdict, str]]] = {
    Reason.UNTRUSTED: (Verdict.INCONCLUSIVE, "the release repository could not be trusted"),
    Reason.UNREACHABLE: (Verdict.INCONCLUSIVE, "the release repository could not be reached"),
    Reason.NOT_OFFERED: (Verdict.INCONCLUSIVE, "it is not offered, or not any more"),
    Reason.DISK_FULL: (Verdict.INCONCLUSIVE, "there was no room on the disk"),
    Reason.UNSUITABLE: (Verdict.BAD, "it is not made for this host, or damaged"),
    Reason.SMOKE_CHECK_FAILED: (Verdict.BAD, "its smoke check failed"),
    Reason.START_FAILED: (Verdict.BAD, "it did not start"),
    Reason.EXITED: (Verdict.BAD, "it ended by itself"),
    Reason.CRASHED: (Verdict.BAD, "it crashed"),
    Reason.NOT_READY: (Verdict.BAD, "it did not become ready in time"),
    Reason.WATCHDOG: (Verdict.BAD, "it stopped answering the watchdog"),
    Reason.OUT_OF_MEMORY: (Verdict.BAD, "it used more memory than it may"),
    Reason.DEADLINE: (Verdict.BAD, "its trial did not come to an end in time"),
    Reason.NO_HEARTBEAT: (Verdict.BAD, "it did not reach the control plane, which others do"),
    Reason.LIMITS_NOT_HELD: (Verdict.BAD, "it did not hold a task to its memory limit"),
    Reason.TASKS_LOST: (Verdict.BAD, "it did not adopt the running tasks"),
    Reason.NOT_STOPPING: (Verdict.BAD, "it did not end when it was told to"),
    Reason.CONTROL_PLANE_AWAY: (Verdict.INCONCLUSIVE, "the control plane was away or told it to wait"),
    Reason.INTERRUPTED: (Verdict.INCONCLUSIVE, "the host restarted or the updater was killed during the trial"),
    Reason.INTERRUPTED_OFTEN: (Verdict.BAD, "its trial was interrupted again and again"),
    Reason.START_FAILURE: (Verdict.BAD, "after its promotion it failed to start, again and again"),
    Reason.OPERATOR: (Verdict.INCONCLUSIVE, "an operator went back"),
    Reason.ROLLOUT: (Verdict.INCONCLUSIVE, "its rollout was halted"),
}

_FINAL: Final = frozenset({State.PROMOTED, State.ROLLED_BACK})
#: Which states may follow which. Forward one step at a time; back from everywhere but the end.
FOLLOWS: Final[dict[State, frozenset[State]]] = {
    State.REQUESTED: frozenset({State.FETCHED, State.ROLLING_BACK}),
    State.FETCHED: frozenset({State.VERIFIED, State.ROLLING_BACK}),
    State.VERIFIED: frozenset({State.STAGED, State.ROLLING_BACK}),
    State.STAGED: frozenset({State.SMOKE_CHECKED, State.ROLLING_BACK}),
    State.SMOKE_CHECKED: frozenset({State.ON_TRIAL, State.ROLLING_BACK}),
    State.ON_TRIAL: frozenset({State.PROMOTING, State.ROLLING_BACK}),
    State.PROMOTING: frozenset({State.PROMOTED, State.ROLLING_BACK}),
    State.PROMOTED: frozenset({State.ROLLING_BACK}),
    State.ROLLING_BACK: frozenset({State.ROLLED_BACK}),
    State.ROLLED_BACK: frozenset(),
}
#: An update that is taken back ends at once here. What is being promoted is promoted first, and then left.
_RECALLABLE: Final = frozenset(FOLLOWS) - _FINAL - {State.PROMOTING, State.ROLLING_BACK}
_STEPS: Final = {
    State.REQUESTED: Step.FETCH,
    State.FETCHED: Step.VERIFY,
    State.VERIFIED: Step.STAGE,
    State.STAGED: Step.SMOKE_CHECK,
    State.SMOKE_CHECKED: Step.BEGIN_TRIAL,
    State.ON_TRIAL: Step.WATCH,
    State.PROMOTING: Step.PROMOTE,
    State.PROMOTED: Step.NONE,
    State.ROLLING_BACK: Step.UNDO,
    State.ROLLED_BACK: Step.NONE,
}


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A state and when it was reached."""

    state: State
    #: Milliseconds since 1970: for people; nothing is decided by it.
    at_ms: int


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One update, from the wish to its end."""

    #: Who wanted it names it, so that a wish that arrives twice is one.
    id: str
    version: str
    #: What the instance ran before, and goes back to; None: the package's release.
    before: str | None
    state: State = State.REQUESTED
    #: The boot in which the present state was recorded.
    boot_id: str = ""
    #: Why it was rolled back, and what there is to say about it.
    reason: Reason | None = None
    verdict: Verdict | None = None
    detail: str = ""
    #: What its trial could not look at on this host; empty: everything was looked at.
    unproved: str = ""
    moments: list[Moment] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.state in _FINAL


class Skip(msgspec.Struct, frozen=True, kw_only=True):
    """A version that this host does not try again by itself."""

    version: str
    reason: Reason
    detail: str = ""
    at_ms: int = 0


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A wish that was not begun."""

    id: str
    version: str
    #: Of the error catalogue.
    code: str
    detail: str
    at_ms: int


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """The whole journal of an instance."""

    format: int = 1
    update: Update | None = None
    skipped: list[Skip] = []
    #: Interrupted trials by version, as long as the version was not decided about.
    interrupted: dict[str, int] = {}
    #: Updates that are over, the latest first.
    history: list[Update] = []
    #: The latest wish, where it was refused; a later one takes its place.
    refused: Refusal | None = None

    def knows(self, id: str) -> bool:  # noqa: A002 - its name
        """Whether the wish of this id was acted on already."""
        latest = [one for one in (self.update, self.refused) if one is not None]
        return any(one.id == id for one in (*latest, *self.history))

    def skip_of(self, version: str) -> Skip | None:
        """Why a version is skipped; None: it is not."""
        return next((skip for skip in self.skipped if skip.version == version), None)


class Trial(enum.Enum):
    """What PID 1 says of the trial unit."""

    ABSENT = "absent"
    RUNNING = "running"
    FAILED = "failed"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the host is like, whatever the journal says."""

    #: The release that the instance is bound to; None: the package's.
    linked: str | None
    boot_id: str
    trial: Trial = Trial.ABSENT
    #: With :attr:`Trial.FAILED`: why.
    failure: Reason = Reason.CRASHED
    detail: str = ""
    #: The version whose update a rollout took back, by a wish that waits; empty: none.
    recalled: str = ""


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """When and in which boot something is recorded."""

    wall_ms: int
    boot_id: str


class Decision(NamedTuple):
    """What is to be done."""

    step: Step
    #: With ``UNDO``: why, where that is not recorded yet.
    reason: Reason | None = None
    detail: str = ""


# --- rules -----------------------------------------------------------------------------------------------------------


def request(
    journal: Journal, *, id: str, version: str, linked: str | None, now: Now, force: bool = False  # noqa: A002 - its name
) -> Journal:  # fmt: skip
    """``journal`` with the wish for ``version``.

    Args:
        journal: As it is.
        id: The wish's name; the same wish again changes nothing.
        version: What is wanted; what the instance is bound to already changes nothing either.
        linked: What the instance is bound to.
        now: The time.
        force: Also a version that is skipped here.

    Raises:
        AgentinaError: ``STATE_CONFLICT`` (another update is under way), ``RELEASE_SKIPPED``, ``NAME_INVALID``.

    """
    versions.check(version)
    present = journal.update
    if journal.knows(id):
        return journal
    if version == linked and (present is None or present.is_over):
        return journal
    if present is not None and present.version == version and not present.is_over:
        return journal
    if present is not None and not present.is_over:
        raise errors.STATE_CONFLICT(
            what=f"The update to {present.version}", state=present.state.value, expected="its end before another one"
        )
    skip = journal.skip_of(version)
    if skip is not None and not force:
        raise errors.RELEASE_SKIPPED(version=version, reason=REASONS[skip.reason][1])
    fresh = Update(
        id=id, version=version, before=linked, boot_id=now.boot_id,
        moments=[Moment(state=State.REQUESTED, at_ms=now.wall_ms)],
    )  # fmt: skip
    return msgspec.structs.replace(
        journal, update=fresh, history=_history(journal), refused=None,
        skipped=[one for one in journal.skipped if one.version != version],
    )  # fmt: skip


def refuse(journal: Journal, *, id: str, version: str, error: errors.AgentinaError, now: Now) -> Journal:  # noqa: A002
    """``journal`` with the note that a wish was not begun, and why."""
    detail = error.message[:_MAX_DETAIL]
    refusal = Refusal(id=id, version=version, code=error.code, detail=detail, at_ms=now.wall_ms)
    return msgspec.structs.replace(journal, refused=refusal)


def advance(journal: Journal, state: State, now: Now, *, unproved: str = "") -> Journal:
    """``journal`` with its update one state further. Going back is :func:`roll_back`.

    Args:
        journal: As it is.
        state: The next.
        now: The time.
        unproved: What the trial could not look at on this host.

    Raises:
        ValueError: That state does not follow.

    """
    if state is State.ROLLING_BACK:
        raise ValueError("a rollback needs its reason")
    update = _in(journal, state)
    moved = _moved(update, state, now)
    if unproved:
        moved = msgspec.structs.replace(moved, unproved=unproved[:_MAX_DETAIL])
    journal = msgspec.structs.replace(journal, update=moved)
    if state is State.PROMOTED:
        return _decided(journal, update.version)
    if state is not State.ROLLED_BACK or update.reason is None:
        return journal
    if update.reason is Reason.INTERRUPTED:
        count = journal.interrupted.get(update.version, 0) + 1
        return msgspec.structs.replace(journal, interrupted={**journal.interrupted, update.version: count})
    if update.verdict is Verdict.BAD:
        skip = Skip(version=update.version, reason=update.reason, detail=update.detail, at_ms=now.wall_ms)
        skipped = [skip, *(one for one in journal.skipped if one.version != update.version)]
        return _decided(msgspec.structs.replace(journal, skipped=skipped[:_MAX_SKIPPED]), update.version)
    return journal


def roll_back(journal: Journal, reason: Reason, now: Now, *, detail: str = "") -> Journal:
    """``journal`` with the decision to go back, for ``reason``. The first decision stays.

    Raises:
        ValueError: There is nothing to go back from.

    """
    if journal.update is not None and journal.update.state is State.ROLLING_BACK:
        return journal
    update = _in(journal, State.ROLLING_BACK)
    if reason is Reason.INTERRUPTED and journal.interrupted.get(update.version, 0) + 1 > MOST_INTERRUPTED:
        reason = Reason.INTERRUPTED_OFTEN
    moved = msgspec.structs.replace(
        _moved(update, State.ROLLING_BACK, now), reason=reason, verdict=REASONS[reason][0], detail=detail[:_MAX_DETAIL]
    )
    return msgspec.structs.replace(journal, update=moved)


def leave(journal: Journal, *, version: str | None, reason: Reason, now: Now) -> Journal:
    """``journal`` with the decision to go back from the last update, whether it is over or not.

    Args:
        journal: As it is.
        version: Only from this one; None: whichever it is.
        reason: Who wants it.
        now: The time.

    Raises:
        AgentinaError: ``STATE_CONFLICT``: there is nothing to go back from.

    """
    update = journal.update
    if update is None or update.state is State.ROLLED_BACK or version not in {None, update.version}:
        state = f"the one to {update.version}, {update.state.value}" if update else "none"
        expected = f"one to {version}" if version else "one that was promoted or is under way"
        raise errors.STATE_CONFLICT(what="The last update of this host", state=state, expected=expected)
    return roll_back(journal, reason, now)


def note_rescue(journal: Journal, facts: Facts, now: Now) -> Journal:
    """``journal`` with the decision that the rescue helper took: the promoted release is out, the link is where it is.

    Raises:
        ValueError: Nothing was promoted.

    """
    moved = roll_back(journal, Reason.START_FAILURE, now, detail=facts.detail)
    assert moved.update is not None
    return msgspec.structs.replace(moved, update=msgspec.structs.replace(moved.update, before=facts.linked))


def plan(journal: Journal, facts: Facts) -> Decision:
    """What is to be done now."""
    update = journal.update
    if update is None or update.state is State.ROLLED_BACK:
        # Somebody's trial that no journal knows, or one that a lost rollback left: what runs in its place is stable.
        return Decision(Step.NONE if facts.trial is Trial.ABSENT else Step.UNDO)
    if update.state is State.PROMOTED:
        # Level 2: the rescue helper moves the link, without a journal, when the promoted release does not start.
        rescued = facts.linked != update.version
        return Decision(Step.UNDO, Reason.START_FAILURE, facts.detail) if rescued else Decision(Step.NONE)
    if update.state in _RECALLABLE and facts.recalled == update.version:
        return Decision(Step.UNDO, Reason.ROLLOUT)
    return _plan_trial(update, facts) if update.state is State.ON_TRIAL else Decision(_STEPS[update.state])


def _plan_trial(update: Update, facts: Facts) -> Decision:
    if facts.trial is Trial.FAILED:
        return Decision(Step.UNDO, facts.failure, facts.detail)
    if facts.trial is Trial.RUNNING and facts.boot_id == update.boot_id:
        return Decision(Step.WATCH)
    return Decision(Step.UNDO, Reason.INTERRUPTED)


def forget_skip(journal: Journal, version: str) -> Journal:
    """``journal`` with nothing held against ``version``: an operator says so."""
    kept = [skip for skip in journal.skipped if skip.version != version]
    return _decided(msgspec.structs.replace(journal, skipped=kept), version)


def explain(update: Update) -> str:
    """Why ``update`` was rolled back, in words; empty: it was not."""
    if update.reason is None:
        return ""
    detail = " ".join(update.detail.split())
    return REASONS[update.reason][1] + (f" ({detail})" if detail else "")


def busy(journal: Journal) -> set[str]:
    """Versions that clean-up must leave alone."""
    update = journal.update
    if update is None or update.is_over:
        return set()
    return {update.version} | ({update.before} if update.before else set())


def _in(journal: Journal, state: State) -> Update:
    """The update, if ``state`` may follow its own."""
    update = journal.update
    if update is None or state not in FOLLOWS[update.state]:
        raise ValueError(f"{state} does not follow {update.state if update else 'nothing'}")
    return update


def _moved(update: Update, state: State, now: Now) -> Update:
    moments = [*update.moments, Moment(state=state, at_ms=now.wall_ms)]
    return msgspec.structs.replace(update, state=state, boot_id=now.boot_id, moments=moments)


def _decided(journal: Journal, version: str) -> Journal:
    interrupted = {name: count for name, count in journal.interrupted.items() if name != version}
    return msgspec.structs.replace(journal, interrupted=interrupted)


def _history(journal: Journal) -> list[Update]:
    return journal.history if journal.update is None else [journal.update, *journal.history][:_MAX_HISTORY]


def read(path: Path) -> Journal:
    """A journal as it is, for those who only look; an empty one where there is none.

    Raises:
        AgentinaError: ``INPUT_TOO_LARGE``, ``STATE_CORRUPT``.

    """
    try:
        return msgspec.json.decode(files.read_bounded(path, limit=_MAX_JOURNAL), type=Journal)
    except FileNotFoundError:
        return Journal()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.STATE_CORRUPT(path=str(path), problem=str(error)[:200], aside="nothing yet") from error


# --- on disk ---------------------------------------------------------------------------------------------------------


class File:
    """A journal on disk, replaced as a whole and durably with each record. Its directory is root's."""

    def __init__(self, path: Path, *, clock: clocks.Clock, boot_id: str) -> None:
        self.path = path
        self._clock = clock
        self._boot_id = boot_id
        #: What became of a journal that was damaged; None: it was not.
        self.damage: errors.AgentinaError | None = None
        self.content = self._load()

    @property
    def now(self) -> Now:
        """For the rules."""
        return Now(wall_ms=self._clock.wall_ms(), boot_id=self._boot_id)

    def record(self, content: Journal) -> None:
        """Make ``content`` the journal.

        Raises:
            AgentinaError: ``DISK_FULL``, ``STATE_UNWRITABLE``; the journal is as before then, here and on disk.

        """
        if content != self.content:
            files.write_atomic(self.path, msgspec.json.encode(content), mode=0o644)
            self.content = content

    def _load(self) -> Journal:
        for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        try:
            return read(self.path)
        except errors.AgentinaError as error:
            aside = files.set_aside(self.path, stamp=str(self._clock.wall_ms()))
            problem = str(error.context.get("problem", error))
            self.damage = errors.STATE_CORRUPT(path=str(self.path), problem=problem, aside=str(aside))
            return Journal()

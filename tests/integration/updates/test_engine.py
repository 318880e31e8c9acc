"""Whole updates on a simulated host: power cuts, kills and a full disk at every write, and what the machine boots into.

Real: journal, rules, releases on disk, links. Simulated: systemd, the network, and whether a release is any good. The
machine's promise is checked after every cut: what it boots into is a whole release that is known to run.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentina import errors
from agentina.system import clock
from agentina.updates import engine, journal, releases
from agentina.updates.journal import Reason, State, Trial, Verdict
from tests.fakes import release_trees

PACKAGED, OLD, NEW = "0.1.0", "0.4.0", "0.5.0"
MACHINE = release_trees.ARCHITECTURE


class PowerCutError(BaseException):
    """Nothing runs after it."""


@dataclasses.dataclass(slots=True)
class Nature:
    """What is the matter with a release."""

    smoke: bool = True
    #: None: it is good.
    trial: Reason | None = None
    #: The machine goes down while it is on trial.
    takes_host_down: bool = False


class Machine:
    """A host: a disk that survives, processes that do not."""

    def __init__(self, root: Path, archives: dict[str, Path]) -> None:
        self.store = releases.Store(root / "opt", proc=root / "proc")
        self.journal_path = root / "journal/default.json"
        self.archives = archives
        self.fetched: set[str] = set()
        self.natures: dict[str, Nature] = {}
        self.boots = 0
        #: Writes left until the power fails; None: it does not.
        self.fuse: int | None = None
        #: Writes left until the disk is full; None: it does not fill.
        self.room: int | None = None
        #: Versions that once ran well here.
        self.proven = {PACKAGED, OLD}
        (root / "proc").mkdir()
        self.journal_path.parent.mkdir()
        for version in (PACKAGED, OLD):
            self.store.unpack(archives[version], version, architecture=MACHINE)
        self.store.link("default", OLD)
        self.boot()

    # --- what PID 1 does -------------------------------------------------------------------------

    def boot(self) -> None:
        """The trial is not enabled, so stable starts; it must run."""
        self.boots += 1
        self.trial = Trial.ABSENT
        self.failure = Reason.CRASHED
        self.start_stable()

    def start_stable(self) -> None:
        version = self.store.linked("default") or PACKAGED
        self.store.check(version, architecture=MACHINE)
        assert version in self.proven, f"{version} was made stable and never proved itself"
        self.runs: str | None = version

    # --- the steps, as the root updater has them ---------------------------------------------------

    def facts(self) -> journal.Facts:
        return journal.Facts(
            linked=self.store.linked("default"), boot_id=self.boot_id, trial=self.trial, failure=self.failure
        )

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def fetch(self, update: journal.Update) -> None:
        if update.version not in self.archives:
            raise errors.UPDATE_UNREACHABLE(url="x", problem="away")
        self.fetched.add(update.version)

    def verify(self, update: journal.Update) -> None:
        assert update.version in self.fetched

    def stage(self, update: journal.Update) -> None:
        self.store.unpack(self.archives[update.version], update.version, architecture=MACHINE)

    def smoke_check(self, update: journal.Update) -> None:
        self.store.check(update.version, architecture=MACHINE)
        if not self.natures.get(update.version, Nature()).smoke:
            raise engine.StepFailedError(Reason.SMOKE_CHECK_FAILED, "ImportError")

    def begin_trial(self, update: journal.Update) -> None:
        self.store.check(update.version, architecture=MACHINE)
        nature = self.natures.get(update.version, Nature())
        if nature.takes_host_down:
            raise PowerCutError
        self.runs, self.trial = update.version, Trial.RUNNING
        if nature.trial is not None:
            # OnFailure= brings stable back, whatever the updater does.
            self.trial, self.failure = Trial.FAILED, nature.trial
            self.start_stable()

    def watch(self, update: journal.Update) -> str:
        assert self.runs == update.version
        self.proven.add(update.version)
        return "memory limits"

    def promote(self, update: journal.Update) -> None:
        engine.promote_links(self.store, "default", update)
        self.trial = Trial.ABSENT
        self.start_stable()

    def undo(self, update: journal.Update | None) -> None:
        if update is not None:
            engine.undo_links(self.store, "default", update)
        self.trial = Trial.ABSENT
        self.start_stable()

    # --- the updater's runs ----------------------------------------------------------------------

    def open(self) -> journal.File:
        return journal.File(self.journal_path, clock=clock.SystemClock(), boot_id=self.boot_id)

    def want(self, version: str, wish: str = "wish", *, force: bool = False) -> None:
        file = self.open()
        file.record(
            journal.request(
                file.content, id=wish, version=version, linked=self.store.linked("default"), now=file.now, force=force
            )
        )

    def update(self) -> journal.Update | None:
        return engine.drive(self.open(), self)

    def to_the_end(self) -> journal.Update:
        """Updates at each boot, until the journal says that it is over."""
        for _ in range(20):
            try:
                update = self.update()
            except PowerCutError:
                self.boot()
                continue
            assert update is not None
            assert update.is_over
            return update
        raise AssertionError("it does not come to an end")


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("archives")
    return {version: release_trees.archive(place, version) for version in (PACKAGED, OLD, NEW, "0.6.0")}


@pytest.fixture
def machine(tmp_path: Path, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, dict(archives))
    lay_fuse(made, monkeypatch)
    return made


def lay_fuse(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every durable change ends in a rename; let the power fail before one, or the disk be full."""
    replace = Path.replace

    def counted(self: Path, target: Path) -> Path:
        if machine.room is not None:
            machine.room -= 1
            if machine.room < 0:
                raise OSError(28, os.strerror(28))
        if machine.fuse == 0:
            raise PowerCutError
        if machine.fuse is not None:
            machine.fuse -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)


def check_end(machine: Machine, update: journal.Update) -> None:
    """Never half: links, journal and what runs agree."""
    linked = machine.store.linked("default")
    assert machine.runs == (linked or PACKAGED)
    assert machine.trial is Trial.ABSENT
    if update.state is State.PROMOTED:
        assert linked == update.version
        assert machine.store.previous("default") == update.before
    else:
        assert linked == update.before
        skip = machine.open().content.skip_of(update.version)
        assert (skip is not None) == (update.verdict is Verdict.BAD)


# --- without trouble ---------------------------------------------------------------------------------------------


def test_good_release_is_promoted(machine: Machine) -> None:
    machine.want(NEW)
    update = machine.to_the_end()
    assert [moment.state.value for moment in update.moments] == [
        "requested", "fetched", "verified", "staged", "smoke-checked", "on-trial", "promoting", "promoted",
    ]  # fmt: skip
    check_end(machine, update)
    assert machine.runs == NEW
    assert update.unproved == "memory limits", "what the trial could not look at is known afterwards"


@pytest.mark.parametrize("reason", [reason for reason in Reason if journal.REASONS[reason][0] is Verdict.BAD])
def test_bad_release_ends_on_the_old_one_with_its_reason(machine: Machine, reason: Reason) -> None:
    machine.natures[NEW] = Nature(trial=reason)
    machine.want(NEW)
    update = machine.to_the_end()
    assert (update.state, update.reason, machine.runs) == (State.ROLLED_BACK, reason, OLD)
    check_end(machine, update)


def test_failed_smoke_check_never_reaches_a_trial(machine: Machine) -> None:
    machine.natures[NEW] = Nature(smoke=False)
    machine.want(NEW)
    update = machine.to_the_end()
    assert (update.reason, update.detail) == (Reason.SMOKE_CHECK_FAILED, "ImportError")
    assert State.ON_TRIAL not in {moment.state for moment in update.moments}
    check_end(machine, update)


def test_repository_away_is_tried_again_later(machine: Machine) -> None:
    archive = machine.archives.pop(NEW)
    machine.want(NEW)
    assert machine.to_the_end().reason is Reason.UNREACHABLE
    machine.archives[NEW] = archive
    machine.want(NEW, "later")
    assert machine.to_the_end().state is State.PROMOTED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.UPDATE_UNTRUSTED(problem="x"), Reason.UNTRUSTED),
        (errors.UPDATE_EXPIRED(problem="x"), Reason.UNTRUSTED),
        (errors.RELEASE_UNKNOWN(what="x", where="y"), Reason.NOT_OFFERED),
        (errors.DISK_FULL(path="x"), Reason.DISK_FULL),
    ],
)
def test_what_is_refused_before_the_trial_changes_nothing_and_is_not_held_against_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: errors.AgentinaError, reason: Reason
) -> None:
    def refuse(_: journal.Update) -> None:
        raise error

    monkeypatch.setattr(machine, "fetch", refuse)
    machine.want(NEW)
    update = machine.to_the_end()
    assert (update.reason, update.detail, update.verdict) == (reason, str(error), Verdict.INCONCLUSIVE)
    check_end(machine, update)


def test_fault_of_the_host_ends_the_run_and_the_next_goes_on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: journal.Update) -> None:
        raise errors.STATE_UNWRITABLE(path="x", problem="y")

    machine.want(NEW)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "stage", refuse)
        with pytest.raises(errors.AgentinaError):
            machine.update()
    assert machine.runs == OLD
    assert machine.to_the_end().state is State.PROMOTED


def test_damaged_archive_is_bad_and_nothing_is_left_of_it(machine: Machine, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    whole = machine.archives[NEW].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    machine.archives[NEW] = broken
    machine.want(NEW)
    assert machine.to_the_end().reason is Reason.UNSUITABLE
    assert NEW not in machine.store.installed()


def test_release_that_takes_the_host_down_is_given_up(machine: Machine) -> None:
    machine.natures[NEW] = Nature(takes_host_down=True)
    for number in range(journal.MOST_INTERRUPTED + 1):
        machine.want(NEW, f"wish-{number}")
        update = machine.to_the_end()
        check_end(machine, update)
    assert update.reason is Reason.INTERRUPTED_OFTEN
    with pytest.raises(errors.AgentinaError):
        machine.want(NEW, "again")


def test_rescue_after_promotion_is_taken_over_wherever_it_landed(machine: Machine) -> None:
    """Both new and previous broken: the helper went down to the package's own, and the updater leaves it there."""
    machine.want(NEW)
    machine.to_the_end()
    machine.store.link("default", None)
    machine.boot()
    update = machine.to_the_end()
    assert (update.state, update.reason, update.before) == (State.ROLLED_BACK, Reason.START_FAILURE, None)
    assert machine.runs == PACKAGED
    check_end(machine, update)


def test_operator_goes_back_after_promotion(machine: Machine) -> None:
    machine.want(NEW)
    machine.to_the_end()
    file = machine.open()
    file.record(journal.roll_back(file.content, Reason.OPERATOR, file.now))
    update = machine.to_the_end()
    assert machine.runs == OLD
    check_end(machine, update)


def test_trial_that_no_journal_knows_is_ended(machine: Machine) -> None:
    machine.want(NEW)
    machine.fuse = 8
    with pytest.raises(PowerCutError):
        machine.update()
    machine.fuse = None
    machine.journal_path.write_bytes(b"\0" * 100)
    machine.trial, machine.runs = Trial.RUNNING, NEW
    assert machine.update() is None
    assert (machine.trial, machine.runs) == (Trial.ABSENT, OLD)


def test_trial_that_cannot_be_ended_does_not_spin(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.trial = Trial.RUNNING
    monkeypatch.setattr(machine, "undo", lambda _: None)
    with pytest.raises(errors.AgentinaError) as caught:
        machine.update()
    assert caught.value.entry is errors.STATE_CONFLICT


# --- power cuts --------------------------------------------------------------------------------------------------

NATURES = {
    "good": Nature(), "smoke": Nature(smoke=False), "crash": Nature(trial=Reason.CRASHED),
    "away": Nature(trial=Reason.CONTROL_PLANE_AWAY),
}  # fmt: skip


@pytest.mark.parametrize("kind", NATURES)
@pytest.mark.parametrize("also_kill", [False, True], ids=["power cut", "updater killed"])
def test_cut_at_every_write_boots_into_what_runs_and_comes_to_its_end(
    tmp_path: Path, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, *, also_kill: bool
) -> None:
    ends = set()
    for fuse in range(100):
        place = tmp_path / str(fuse)
        place.mkdir()
        machine = Machine(place, dict(archives))
        machine.natures[NEW] = NATURES[kind]
        machine.want(NEW)
        machine.fuse = fuse
        with monkeypatch.context() as patch:
            lay_fuse(machine, patch)
            try:
                machine.update()
                is_through = True
            except PowerCutError:
                is_through = False
        machine.fuse = None
        if not is_through:
            if not also_kill:
                machine.boot()
            assert machine.runs in machine.proven or machine.trial is Trial.RUNNING
        update = machine.to_the_end()
        check_end(machine, update)
        for version in machine.store.installed():
            machine.store.check(version, architecture=MACHINE)
        ends.add((update.state, update.reason))
        shutil.rmtree(place)
        if is_through:
            break
    assert fuse >= {"good": 10, "smoke": 6, "crash": 8, "away": 8}[kind], "every record, the release, the links"
    reason = {"good": None, "smoke": Reason.SMOKE_CHECK_FAILED}.get(kind, NATURES[kind].trial)
    expected = {(State.PROMOTED if reason is None else State.ROLLED_BACK, reason)}
    assert expected <= ends
    # Nothing else than what was cut may differ: a trial in the dark is inconclusive.
    assert ends - expected <= {(State.ROLLED_BACK, Reason.INTERRUPTED)}


@pytest.mark.parametrize("kind", NATURES)
def test_full_disk_at_every_write_leaves_what_runs(
    tmp_path: Path, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for writes in range(100):
        place = tmp_path / str(writes)
        place.mkdir()
        machine = Machine(place, dict(archives))
        machine.natures[NEW] = NATURES[kind]
        machine.want(NEW)
        machine.room = writes
        with monkeypatch.context() as patch:
            lay_fuse(machine, patch)
            try:
                machine.update()
                is_through = machine.room > 0
            except errors.AgentinaError as error:
                assert error.entry is errors.DISK_FULL  # noqa: PT017 - whether it raises depends on the write
                is_through = False
        machine.room = None
        assert machine.runs in machine.proven
        if not is_through:
            machine.boot()
        update = machine.to_the_end()
        check_end(machine, update)
        assert update.reason in {None, NATURES[kind].trial, Reason.SMOKE_CHECK_FAILED, Reason.DISK_FULL,
                                 Reason.INTERRUPTED}  # fmt: skip
        shutil.rmtree(place)
        if is_through:
            break
    assert writes >= 6


def test_good_trial_that_cannot_be_recorded_does_not_go_on_unwatched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = machine.watch

    def fill(update: journal.Update) -> str:
        unproved = watch(update)
        machine.room = 1  # for the link that the undoing moves
        return unproved

    monkeypatch.setattr(machine, "watch", fill)
    record = journal.File.record

    def full(file: journal.File, content: journal.Journal) -> None:
        if machine.room is not None:
            raise errors.DISK_FULL(path="journal")
        record(file, content)

    monkeypatch.setattr(journal.File, "record", full)
    machine.want(NEW)
    with pytest.raises(errors.AgentinaError):
        machine.update()
    assert (machine.runs, machine.trial) == (OLD, Trial.ABSENT)


# --- any order ---------------------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """A host for years: wishes, cuts anywhere, bad releases, rescues, clean-ups, in any order."""

    archives: dict[str, Path]
    place: Callable[[], Path]

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.machine = Machine(type(self).place(), dict(self.archives))
        lay_fuse(self.machine, self.patch)
        self.wishes = 0

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    @rule(version=st.sampled_from([OLD, NEW, "0.6.0"]), force=st.booleans())
    def wish(self, version: str, *, force: bool) -> None:
        self.wishes += 1
        try:
            self.machine.want(version, f"wish-{self.wishes}", force=force)
        except errors.AgentinaError as error:
            assert error.entry in {errors.STATE_CONFLICT, errors.RELEASE_SKIPPED}  # noqa: PT017 - either may come

    @rule(
        version=st.sampled_from([NEW, "0.6.0"]), smoke=st.booleans(),
        trial=st.none() | st.sampled_from([Reason.CRASHED, Reason.NO_HEARTBEAT, Reason.CONTROL_PLANE_AWAY]),
        down=st.booleans(),
    )  # fmt: skip
    def nature(self, version: str, trial: Reason | None, *, smoke: bool, down: bool) -> None:
        self.machine.natures[version] = Nature(smoke=smoke, trial=trial, takes_host_down=down)

    @rule(fuse=st.none() | st.integers(0, 12), reboot=st.booleans())
    def run(self, fuse: int | None, *, reboot: bool) -> None:
        self.machine.fuse = fuse
        try:
            self.machine.update()
        except PowerCutError:
            self.machine.fuse = None
            if reboot or self.machine.runs is None:
                self.machine.boot()
        finally:
            self.machine.fuse = None

    @rule()
    def reboot(self) -> None:
        self.machine.boot()

    @rule()
    def rescue(self) -> None:
        if self.machine.trial is Trial.ABSENT:
            self.machine.store.link("default", None)
            self.machine.start_stable()

    @rule(fuse=st.none() | st.integers(0, 4))
    def clean(self, fuse: int | None) -> None:
        self.machine.fuse = fuse
        content = self.machine.open().content
        try:
            self.machine.store.clean(packaged=PACKAGED, busy=journal.busy(content))
        except PowerCutError:
            self.machine.boot()
        finally:
            self.machine.fuse = None

    @rule()
    def settle(self) -> None:
        self.machine.natures.clear()
        if self.machine.open().content.update is None:
            return
        check_end(self.machine, self.machine.to_the_end())

    @invariant()
    def what_would_boot_runs(self) -> None:
        if not hasattr(self, "machine"):
            return
        stable = self.machine.store.linked("default") or PACKAGED
        self.machine.store.check(stable, architecture=MACHINE)
        assert stable in self.machine.proven
        assert self.machine.runs is not None
        self.machine.store.check(self.machine.runs, architecture=MACHINE)


def test_any_life_of_a_host_keeps_it_running(
    tmp_path_factory: pytest.TempPathFactory, archives: dict[str, Path]
) -> None:
    from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415 - the one use

    Life.archives = archives
    Life.place = staticmethod(lambda: tmp_path_factory.mktemp("life"))
    run_state_machine_as_test(Life, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))

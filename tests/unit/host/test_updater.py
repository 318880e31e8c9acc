"""What the updater makes of wishes, and the daemon of orders; systemd is not needed for it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

import agentina
from agentina import errors
from agentina.host.instance import config
from agentina.host.updating import orders, updater, wishes
from agentina.protocol import wire
from agentina.system import clock, paths
from agentina.system import tasks as background
from agentina.updates import journal, releases
from agentina.updates.journal import Reason, State
from tests.fakes import deadlines, release_trees

PACKAGED, OLD, NEW = "0.1.0", "0.4.0", "0.5.0"


class Bench:
    """An instance's files, and its journal."""

    def __init__(self, root: Path) -> None:
        self.instance = paths.Layout(root).instance("default")
        self.store = releases.Store(self.instance.layout.software_directory, proc=root / "proc")
        for directory in (self.instance.state, self.instance.updates.parent, root / "proc"):
            directory.mkdir(parents=True)
        self.instance.layout.packaged_version.parent.mkdir(parents=True)
        self.instance.layout.packaged_version.write_text(f"{PACKAGED}\n")
        for version in (PACKAGED, OLD):
            release_trees.make(self.store.path(version), version)
        self.store.link("default", OLD)
        self.configure()
        self.file = updater.open_journal(self.instance)
        self.orders = orders.Orders(self.instance, clocks=clock.SystemClock())

    def configure(self, **changes: Any) -> None:
        config.save(self.instance, config.HostConfig(control_plane="https://example.com", **changes))

    def heed(self, version: str = NEW, *, action: Any = "upgrade", name: str = "roll_1.1") -> journal.Journal:
        wish = wishes.Wish(id=name, action=action, version=version)
        updater.heed(self.instance, self.store, self.file, wish)
        return self.file.content

    def end(self, *, good: bool) -> None:
        """Let what is under way come to its end."""
        content = self.file.content
        if not good:
            content = journal.roll_back(content, Reason.CRASHED, self.file.now, detail="signal 11")
            content = journal.advance(content, State.ROLLED_BACK, self.file.now)
        else:
            ahead = (State.FETCHED, State.VERIFIED, State.STAGED, State.SMOKE_CHECKED, State.ON_TRIAL, State.PROMOTING)
            for state in (*ahead, State.PROMOTED):
                content = journal.advance(content, state, self.file.now)
            self.store.link("default", NEW)
        self.file.record(content)

    def report(self) -> wire.UpdateReport:
        report = self.orders.report()
        assert report is not None
        return report


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_wish_is_recorded_and_marked_as_pending(bench: Bench) -> None:
    update = bench.heed().update
    assert update is not None
    assert (update.id, update.version, update.before, update.state) == ("roll_1.1", NEW, OLD, State.REQUESTED)
    assert (bench.instance.updates / "pending").exists(), "a power cut now does not end it"
    assert bench.report().state == "requested"
    assert bench.report().verdict == ""


@pytest.mark.parametrize(
    ("version", "settings"),
    [("0.3.9", {}), (NEW, {"update_pin": "0.4.1"}), (NEW, {"update_window": "mon 00:00-00:01"})],
    ids=["older", "pinned", "window"],
)
def test_what_the_host_does_not_want_is_refused_and_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, version: str, settings: dict[str, Any]
) -> None:
    tuesday = 5 * 86_400_000
    monkeypatch.setattr(clock.SystemClock, "wall_ms", lambda _: tuesday)
    bench.configure(**settings)
    assert bench.heed(version).update is None
    report = bench.report()
    assert (report.id, report.state, report.verdict, report.reason) == (
        "roll_1.1", "refused", "inconclusive", "STATE_CONFLICT",
    )  # fmt: skip
    assert bench.heed(version) is bench.file.content, "once"


def test_owners_pin_and_window_let_the_wanted_pass(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock.SystemClock, "wall_ms", lambda _: 4 * 86_400_000)
    bench.configure(update_pin=NEW, update_window="mon 00:00-00:01")
    assert bench.heed().update is not None


def test_skipped_release_is_refused(bench: Bench) -> None:
    bench.heed()
    bench.end(good=False)
    assert bench.heed(name="roll_1.2").refused is not None
    assert bench.report().reason == "RELEASE_SKIPPED"
    problem = bench.orders.problem()
    assert problem is not None
    assert "it crashed (signal 11)" in problem.message


def test_rollback_leaves_that_version_only(bench: Bench) -> None:
    bench.heed()
    bench.end(good=True)
    assert bench.report().verdict == "good"
    assert bench.heed("0.6.0", action="rollback", name="roll_2.1").refused is not None
    content = bench.heed(NEW, action="rollback", name="roll_1.2")
    assert content.update is not None
    assert (content.update.state, content.update.reason) == (State.ROLLING_BACK, Reason.ROLLOUT)


def test_wish_to_leave_what_was_left_already_is_fulfilled(bench: Bench) -> None:
    bench.heed()
    wishes.write(bench.instance, wishes.Wish(id="roll_1.2", action="rollback", version=NEW))
    assert wishes.recalled(bench.instance) == NEW
    bench.end(good=False)
    content = bench.heed(NEW, action="rollback", name="roll_1.2")
    assert content.refused is None
    assert bench.report().state == "rolled-back"
    assert wishes.take(bench.instance) is not None, "looking does not take it"
    assert wishes.recalled(bench.instance) == ""


@pytest.mark.parametrize("content", [b"", b"{", b'{"id": "a", "action": "rollback", "version": "../x"}', b"x" * 5000])
def test_wish_that_is_not_understood_recalls_nothing(bench: Bench, content: bytes) -> None:
    bench.instance.wish.write_bytes(content)
    assert wishes.recalled(bench.instance) == ""


def test_release_that_is_gone_is_not_gone_back_to(bench: Bench) -> None:
    bench.heed()
    bench.end(good=True)
    bench.store.path(OLD).rename(bench.store.path(OLD).with_name("elsewhere"))
    with pytest.raises(errors.AgentinaError) as caught:
        updater.go_back(bench.instance, bench.store, bench.file, version=None, reason=Reason.OPERATOR)
    assert caught.value.entry is errors.RELEASE_UNKNOWN


def test_release_that_was_deleted_by_hand_is_nothing_to_go_back_to(bench: Bench) -> None:
    """The launcher runs the package's own then: that is what comes back."""
    shutil.rmtree(bench.store.path(OLD))
    assert updater.running(bench.instance, bench.store) == PACKAGED
    update = bench.heed().update
    assert update is not None
    assert update.before is None


def test_what_runs_already_is_no_wish(bench: Bench) -> None:
    updater.want(bench.instance, bench.store, bench.file, version=OLD, force=False)
    bench.store.link("default", None)
    updater.want(bench.instance, bench.store, bench.file, version=PACKAGED, force=False)
    assert bench.file.content == journal.Journal()


def test_full_disk_is_met_again_and_no_refusal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise errors.DISK_FULL(path="x")

    monkeypatch.setattr("agentina.system.files.write_atomic", full)
    with pytest.raises(errors.AgentinaError) as caught:
        bench.heed()
    assert caught.value.entry is errors.DISK_FULL
    assert not bench.file.content.knows("roll_1.1")


def test_clean_up_keeps_what_other_instances_are_about(bench: Bench) -> None:
    for version in ("0.6.0", "0.7.0", "0.8.0", "0.3.0"):
        release_trees.make(bench.store.path(version), version)
    other = bench.instance.layout.instance("other")
    config.save(other, config.HostConfig(control_plane="https://example.com"))
    updater.want(other, bench.store, updater.open_journal(other), version="0.3.0", force=False)
    updater.clean_up(bench.instance, bench.store)
    assert bench.store.installed() == ["0.8.0", "0.7.0", "0.6.0", OLD, "0.3.0", PACKAGED]
    other.update_journal.write_text("{")
    (bench.store.path("0.2.0")).mkdir()
    updater.clean_up(bench.instance, bench.store)
    assert "0.3.0" in bench.store.installed(), "a journal that is not understood: nothing goes"


# --- the daemon's side ------------------------------------------------------------------------------------------------


def order(version: str = NEW, action: Any = "upgrade", name: str = "roll_1.1") -> wire.UpdateOrder:
    return wire.UpdateOrder(id=name, action=action, version=version)


def test_order_becomes_a_wish_until_somebody_acted_on_it(bench: Bench) -> None:
    bench.orders.obey(None)
    assert wishes.take(bench.instance) is None
    bench.orders.obey(order())
    assert wishes.take(bench.instance) == wishes.Wish(id="roll_1.1", action="upgrade", version=NEW)
    bench.orders.obey(order())
    assert wishes.take(bench.instance) is None, "not again within the minute"
    bench.heed()
    bench.orders.obey(order(name="roll_1.2"))
    assert wishes.take(bench.instance) is not None, "another order"
    later = orders.Orders(bench.instance, clocks=clock.SystemClock())
    later.obey(order())
    assert wishes.take(bench.instance) is None, "the journal knows it"


@pytest.mark.parametrize(
    "given", [order(agentina.__version__), order("0.0.1", "rollback")], ids=["runs it", "does not run it"]
)
def test_fulfilled_order_is_no_wish(bench: Bench, given: wire.UpdateOrder) -> None:
    bench.orders.obey(given)
    assert wishes.take(bench.instance) is None


def test_order_to_leave_what_is_on_its_way_is_a_wish(bench: Bench) -> None:
    bench.heed()
    bench.orders.obey(order(NEW, "rollback", "roll_1.2"))
    assert wishes.take(bench.instance) is not None


async def test_news_are_told_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "_SOON_SECONDS", 0.01)
    told = asyncio.Event()
    bench.heed()
    watch = background.start(bench.orders.watch(told.set), name="watch")
    try:
        await asyncio.sleep(0.05)
        assert not told.is_set(), "nothing new"
        bench.end(good=False)
        async with asyncio.timeout(deadlines.HANG):
            await told.wait()
    finally:
        await background.cancel(watch)


def test_host_without_an_updater_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    instance.state.mkdir(parents=True)
    there = orders.Orders(instance, clocks=clock.SystemClock())
    there.obey(None)
    there.obey(order(agentina.__version__))
    assert there.report() is None
    there.obey(order())
    assert wishes.take(instance) is None
    report = there.report()
    assert report is not None
    assert (report.id, report.state, report.verdict, report.reason) == (
        "roll_1.1", "refused", "inconclusive", "UPDATER_MISSING",
    )  # fmt: skip
    there.obey(order())
    assert there.report() is report, "once"
    there.obey(order(name="roll_2.1"))
    again = there.report()
    assert again is not None
    assert again.id == "roll_2.1"


def test_damaged_journal_is_no_report(bench: Bench) -> None:
    bench.heed()
    bench.instance.update_journal.write_bytes(b"\xff")
    assert bench.orders.report() is None
    assert bench.orders.problem() is None

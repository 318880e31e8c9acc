"""The power is cut, and the disk is full, at every state that an update records.

The states are the journal's own list: one that is never come to, or a new one that nobody thought of here, fails the
test. A boot takes its time, so each of the two has a part of them, another one each day, and both together have all.
With ``AGENTINA_VM_CUTS`` each has all, and the power is cut before each record too: the step before has been done, and
nobody knows. Whoever records a state is held there by the release itself (:mod:`tests.vm.variants`), so that no cut
comes too early or too late; the host forgets what was not synced (:mod:`tests.vm.container`).
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from agentina.updates import journal
from tests.vm import container, host, lab, updating

ALL: Final = "AGENTINA_VM_CUTS" in os.environ
AFTER: Final = [f"after {state.value}" for state in journal.State]
BEFORE: Final = [f"before {state.value}" for state in journal.State]
#: Points of each test, unless it has all.
FEW: Final = 6
#: Cuts at any moment, besides.
CUTS: Final = int(os.environ.get("AGENTINA_VM_CUTS") or 2)
#: The release that the host runs, and those it is to run; each waits at points.
OLD: Final = "5.0.0"
_LIST: Final = "/etc/agentina-test-points"
_HELD: Final = f"/run/{updating.HELD}/held"


@pytest.fixture(scope="module")
def site(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[updating.Site]:
    there = new_container("steps", forgets=True)
    with updating.on(there, run_lab, tmp_path_factory.mktemp("releases")) as made:
        made.set_times(soak=1)
        code, document = made.upgrade(OLD, "held")
        assert code == 0, document
        there.run("sync")
        yield made


class Course:
    """Updates to one release and back, one after the other, with all that happens to them."""

    def __init__(self, site: updating.Site) -> None:
        self.site = site
        self.there = site.there
        self._command: subprocess.Popen[bytes] | None = None
        self.wanted = "6.0.0"

    def begin(self) -> None:
        """Begin one, unless one is under way."""
        update = self._update()
        if update is not None and update["state"] not in {"promoted", "rolled-back"}:
            return
        self.forget_command()
        if update is not None and update["state"] == "promoted":
            self._command = self.there.start("agentina rollback --yes")
        else:
            self.site.publish(self.wanted, "held")
            self._command = self.there.start(f"agentina upgrade {self.wanted} --yes")

    def held_at(self, points: list[str]) -> Iterator[str]:
        """Have updates until one was held at each of these points; the list of those that are left, at each."""
        left = list(points)
        self.there.put("\n".join(left).encode(), _LIST)
        for _ in range(3 * len(points)):
            self.begin()
            if point := self.held():
                left.remove(point)
                yield "\n".join(left)
                continue
            self.forget_command()
            self.check_end()
            if not left:
                return
        raise AssertionError(f"nobody records {left}, or there is no end")

    def held(self) -> str:
        """Where it is held; empty: it came to its end."""

        def look() -> str:
            done = self.there.try_run(f"cat {_HELD}")
            if done.returncode == 0:
                return done.stdout
            return "over" if self._is_over() else ""

        try:
            point = str(host.wait_for(look, "it is held, or over"))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.site.log()}") from None
        return "" if point == "over" else point

    def let_go(self) -> None:
        """Let it go on from where it is held."""
        self.there.run(f"rm -f {_HELD}")

    def forget_command(self) -> None:
        """The operator's command, which ended with the host, or does now."""
        if self._command is not None:
            self._command.kill()
            self._command.communicate()
            self._command = None

    def _is_over(self) -> bool:
        update = self._update()
        is_over = update is None or update["state"] in {"promoted", "rolled-back"}
        has_ended = self._command is None or self._command.poll() is not None
        return is_over and has_ended and not self.is_pending()

    def is_pending(self) -> bool:
        return self.there.try_run("test -e /var/lib/agentina/.updates/default/pending").returncode == 0

    def _update(self) -> dict[str, str] | None:
        done = self.there.try_run("cat /var/lib/agentina/.updates/default/journal.json")
        found = json.loads(done.stdout)["update"] if done.returncode == 0 else None
        return None if found is None or found["version"] == OLD else dict(found)

    def check_runs(self) -> str:
        """A version that is known to run does, and has a session; which one."""
        try:
            version = self.site.version()
        except AssertionError as error:
            units = self.there.run("systemctl list-units --all --no-pager --plain 'agentina*'; df /")
            raise AssertionError(f"{error}\n{units}\n{self.site.status()}\n{self.site.log()}") from None
        assert version in {OLD, self.wanted}
        return version

    def check_end(self) -> None:
        """Links, journal and what runs agree, and nothing is held against a good release."""
        update = self._update()
        expected = OLD if update is None or update["state"] == "rolled-back" else update["version"]
        self.site.wait_for_version(expected)
        linked = self.there.run("readlink /opt/agentina/instances/default").strip()
        assert linked == f"../releases/{expected}"
        assert self.there.try_run("systemctl is-active agentina-trial@default").stdout.strip() == "inactive"
        assert json.loads(self.there.get("/var/lib/agentina/.updates/default/journal.json"))["skipped"] == []


@pytest.fixture(scope="module")
def todays() -> list[str]:
    """The points after a record, in an order of the day: power cuts take the first ones, full disks the last ones."""
    return random.Random(dt.datetime.now(dt.UTC).date().toordinal()).sample(AFTER, len(AFTER))


@pytest.fixture(scope="module")
def course(site: updating.Site) -> Course:
    return Course(site)


def test_power_cut_at_records(course: Course, todays: list[str], measured: Callable[[str], None]) -> None:
    there = course.there
    assert isinstance(there, container.Container)
    points = [*AFTER, *BEFORE] if ALL else todays[:FEW]
    started = time.monotonic()
    for left in course.held_at(points):
        there.cut()
        course.forget_command()
        there.leave(_LIST, left)
        there.power_on()  # the boot is not over as long as the updater is held
        course.check_runs()
    measured(f"{len(points)} power cuts at records of updates in {time.monotonic() - started:.0f} s")


def test_power_cut_at_any_moment(course: Course) -> None:
    there, choose = course.there, random.Random(11)
    there.put(b"", _LIST)
    for _ in range(CUTS):
        course.begin()
        time.sleep(choose.uniform(0.2, 5))
        there.cut()
        course.forget_command()
        there.power_on()
        course.check_runs()
        assert course.held() == ""
        course.check_end()


def test_full_disk_after_records(course: Course, todays: list[str], measured: Callable[[str], None]) -> None:
    there = course.there
    points = AFTER if ALL else todays[-FEW:]
    started = time.monotonic()
    for left in course.held_at(points):
        there.put(left.encode(), _LIST)
        there.fill_disk()
        course.let_go()
        course.check_runs()
        there.free_disk()
    measured(f"a full disk after {len(points)} records of updates in {time.monotonic() - started:.0f} s")

"""Releases that are good, and releases that are bad in every way, on a host whose tasks must not notice.

Each release is a real one of this checkout with a fault built in (:mod:`tests.vm.variants`), published in a real
repository that the control plane serves. After each attempt the host runs what it ran before, by itself; the reason is
recorded; the tasks are the same processes.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import release_publisher
from tests.vm import container, host, lab, variants

TASKS = 3
#: Prints each span of time in which the daemon did not answer on its socket; ends at a line on stdin.
WATCH = """
import select, socket, sys, time
last = time.monotonic()
while not select.select([sys.stdin], [], [], 0.01)[0]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect("/run/agentina/default/agentina.sock")
            connection.sendall(b'{"verb": "status"}\\n')
            answered = bool(connection.recv(1))
    except OSError:
        answered = False
    if answered:
        now = time.monotonic()
        if now - last > 0.15:
            print(f"{now - last:.3f}")
        last = now
"""
GOOD = "10.0.0"
#: Versions by fault.
BAD = {fault: f"9.1.{number}" for number, fault in enumerate(variants.FAULTS)}
#: Faults that are over before the end of the trial: what is expected, and what makes it quick.
ON_TRIAL = [
    ("smoke", "smoke check failed", {}),
    ("no-start", "did not start", {}),
    ("exit-0", "ended by itself", {}),
    ("crash", "crashed", {}),
    ("hang", "did not become ready", {"start": 6}),
    ("watchdog", "watchdog", {"watchdog": 3}),
    ("mute", "did not reach the control plane", {"patience": 4}),
    ("forgetful", "did not adopt", {}),
]


class Site:
    """A host with running tasks, whose control plane has a release repository."""

    def __init__(
        self, there: container.Container, run_lab: lab.Lab, publisher: release_publisher.Publisher, builds: Path
    ) -> None:
        self.there = there
        self.lab = run_lab
        self._publisher = publisher
        self._builds = builds
        self._published: set[str] = set()
        self.packaged = self.version()
        script = "while :; do sleep 1; done"
        self.jobs = [run_lab.fleet.submit_script(script, resources={"memory": "64MiB"}) for _ in range(TASKS)]
        self.wait_for_tasks()

    def wait_for_tasks(self) -> None:
        """Wait until all tasks run, and remember their processes."""
        host.wait_for(lambda: len(self.lab.units(self.there)) == TASKS, f"{TASKS} tasks run")
        self.pids = self.lab.units(self.there)

    def version(self) -> str:
        """What runs, by the daemon's own word."""
        self.lab.wait_online(self.there)
        return str(self.status()["version"])

    def wait_for_version(self, version: str) -> None:
        """Wait until a daemon of this version is online: PID 1 starts it while the update is over already."""
        host.wait_for(lambda: self.version() == version, f"{version} runs")

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.there.try_run("agentina status --json").stdout))

    def set_times(
        self, *, soak: float = 60, patience: float = 60, start: float = 60, watchdog: float = 60, stop: float = 15
    ) -> None:
        """How long things may take: what ends a trial earlier is the release's fault, not this machine's."""
        units = {
            "agentina-update@": f"Environment=SOAK={soak}s PATIENCE={patience}s\nRestartSec=1s\n",
            "agentina-trial@": f"TimeoutStartSec={start}s\nWatchdogSec={watchdog}s\nTimeoutStopSec={stop}s\n",
            "agentina@": f"RestartSec=100ms\nTimeoutStopSec={stop}s\n[Unit]\nStartLimitBurst=4\n",
        }
        for unit, text in units.items():
            path = f"/etc/systemd/system/{unit}.service.d/times.conf"
            self.there.put(f"[Service]\n{text}".encode(), path)
        self.there.run("systemctl daemon-reload")

    def publish(self, version: str, fault: str = "") -> None:
        """Publish a release, once."""
        if version in self._published:
            return
        self._published.add(version)
        build = variants.build(self.lab.package, self._builds, version, fault)
        signers = self._publisher.publishers[:1]
        self._publisher.place.publish(build, channel="stable", signers=signers, now=release_publisher.NOW)
        self._publisher.sign_online()

    def upgrade(self, version: str, fault: str = "") -> tuple[int, dict[str, Any]]:
        """``agentina upgrade``: its exit code and document."""
        self.publish(version, fault)
        done = self.there.try_run(f"agentina upgrade {version} --yes --json")
        try:
            return done.returncode, dict(json.loads(done.stdout))
        except ValueError:
            raise AssertionError(f"{done.stdout}\n{done.stderr}\n{self.log()}") from None

    @contextlib.contextmanager
    def upgrading(self, version: str, fault: str = "", *, trial: str = "active") -> Iterator[subprocess.Popen[bytes]]:
        """An upgrade that has come to its trial, whose unit is in the given state."""
        self.publish(version, fault)
        upgrade = self.there.start(f"agentina upgrade {version} --yes")
        try:
            state = "$(systemctl show -P ActiveState agentina-trial@default)"
            self.there.wait(f'test "{state}" = {trial}', f"{version} is on trial")
            yield upgrade
        finally:
            upgrade.kill()
            upgrade.communicate()

    @contextlib.contextmanager
    def absences(self) -> Iterator[list[float]]:
        """Spans of more than 150 ms in which the daemon did not answer, filled in when the block ends."""
        found: list[float] = []
        watch = self.there.start("python3 /root/watch.py")
        try:
            yield found
        finally:
            said, _ = watch.communicate(b"\n", timeout=host.PATIENCE)
            found += map(float, said.split())

    def wish(self, content: bytes) -> None:
        """Leave a wish as the daemon does, or as somebody who took it over might; returns when it was taken."""
        path = "/var/lib/agentina/default/update-wish.json"
        self.there.run(f"cat > {path}.new && mv {path}.new {path}", user="agentina", text=content)
        self.there.wait(f"! test -e {path}", "the wish was taken")

    def wait_for_report(self, state: str) -> None:
        """Wait until the daemon reports that the latest update is in this state."""
        try:
            host.wait_for(lambda: (self.status().get("update") or {}).get("state") == state, f"it is {state}")
        except AssertionError as error:
            units = self.there.run("systemctl list-units --all --no-pager --plain 'agentina*'")
            raise AssertionError(f"{error}\n{units}\n{self.status()}\n{self.log()}") from None

    def log(self) -> str:
        return self.there.run("journalctl -n 60 --no-pager -o short-monotonic -u 'agentina*'")

    def check_untouched(self) -> None:
        assert self.lab.units(self.there) == self.pids


@pytest.fixture(scope="module")
def publisher(run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory) -> release_publisher.Publisher:
    return release_publisher.Publisher(
        tmp_path_factory.mktemp("publisher"), place=run_lab.fleet.data / "releases"
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    publisher = release_publisher.Publisher(
        tmp_path_factory.mktemp("publisher"), place=run_lab.fleet.data / "releases"
    )  # fmt: skip
    there = new_container("updated")
    run_lab.activate(there, "default", f"--max-concurrent-tasks {TASKS}")
    there.put(WATCH.encode(), "/root/watch.py")
    made = Site(there, run_lab, publisher, tmp_path_factory.mktemp("variants"))
    yield made
    run_lab.fleet.client.close()  # it was idle for long
    for job in made.jobs:
        run_lab.fleet.client.cancel_job(job)


@pytest.mark.parametrize(("fault", "reason", "times"), ON_TRIAL, ids=[fault for fault, _, _ in ON_TRIAL])
def test_bad_release_never_stays(site: Site, fault: str, reason: str, times: dict[str, float]) -> None:
    site.set_times(**times)
    code, document = site.upgrade(BAD[fault], fault)
    assert code == 1, document
    assert reason in document["error"]["message"], site.log()
    assert document["error"]["context"]["verdict"] == "bad"
    site.wait_for_version(site.packaged)
    if fault == "forgetful":
        # What a daemon tells the control plane that it does not hold is given away: its jobs are tried again.
        site.wait_for_tasks()
    site.check_untouched()


# --- after the trial -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"), [("deaf", "did not end when it was told to"), ("second-start", "did not start")]
)
def test_release_that_shows_its_fault_while_it_is_promoted(site: Site, fault: str, reason: str) -> None:
    site.set_times(soak=1, stop=3)
    code, document = site.upgrade(BAD[fault], fault)
    assert code == 1, document
    assert reason in document["error"]["message"], site.log()
    site.wait_for_version(site.packaged)
    site.check_untouched()


def test_release_that_crashes_after_its_promotion_is_left(site: Site) -> None:
    site.set_times(soak=1)
    code, document = site.upgrade(BAD["later"], "later")
    assert code == 0, document
    site.wait_for_version(site.packaged)
    site.wait_for_report("rolled-back")
    update = site.status()["update"]
    assert (update["verdict"], update["reason"]) == ("bad", "start-failure")
    assert "did not start" in update["detail"]
    site.check_untouched()
    code, document = site.upgrade(BAD["later"])
    assert document["error"]["code"] == "RELEASE_SKIPPED"


def test_package_runs_when_the_new_and_the_previous_release_are_broken(site: Site) -> None:
    """Both are on the disk; no updater ever let them in."""
    site.set_times()
    for fault in ("second-start", "later"):
        site.there.run(
            f"test -d /opt/agentina/releases/{BAD[fault]}; touch /var/lib/agentina/default/was-here-{BAD[fault]}"
        )
    site.there.run(
        f"ln -sfn ../releases/{BAD['second-start']} /opt/agentina/instances/default; "
        f"ln -sfn ../releases/{BAD['later']} /opt/agentina/previous/default; "
        "systemctl restart --no-block agentina@default"
    )
    site.there.wait("! test -e /opt/agentina/instances/default", "both were left")
    site.wait_for_version(site.packaged)
    site.check_untouched()


def test_good_release_stays_and_an_operator_goes_back(site: Site, measured: Callable[[str], None]) -> None:
    site.set_times(soak=1)
    site.publish(GOOD)
    found = json.loads(site.there.try_run("agentina upgrade --check --json").stdout)
    assert found["available"]["version"] == GOOD, "the newest"
    with site.absences() as absences:
        assert site.upgrade(GOOD)[0] == 0
    measured(f"upgrade: the daemon was away for {' and '.join(f'{gap:.2f} s' for gap in absences)} in a container")
    assert site.version() == GOOD
    site.check_untouched()
    update = site.status()["update"]
    assert (update["version"], update["state"], update["verdict"]) == (GOOD, "promoted", "good")
    assert "not provable here: memory limits" in update["detail"], "they do not hold in a container"
    listed = json.loads(site.there.run("agentina release list --json"))["releases"]
    assert [one["version"] for one in listed if one["runs"]] == [GOOD]
    with site.absences() as absences:
        site.there.run("agentina rollback --yes")
        site.wait_for_version(site.packaged)
    measured(f"rollback: the daemon was away for {' and '.join(f'{gap:.2f} s' for gap in absences)} in a container")
    site.check_untouched()
    assert site.there.try_run("agentina rollback --yes").returncode == 6, "there is nothing further to go back to"


# --- during the trial ----------------------------------------------------------------------------------------------


def test_trial_in_all_weathers(site: Site, package: Path) -> None:
    """A second wish, an updater that is killed, an installation of the package: the trial goes on, and is good."""
    site.set_times(soak=8)
    with site.upgrading("9.2.0") as upgrade:
        assert site.upgrade("9.2.0")[1]["error"]["code"] == "STATE_CONFLICT"
        site.there.run("systemctl kill --signal=KILL agentina-update@default")
        site.there.run(f"apt-get -y --reinstall install /root/{package.name}")
        assert upgrade.wait(host.PATIENCE) == 0, site.log()
    assert site.version() == "9.2.0"
    site.there.run(f"apt-get -y --reinstall install /root/{package.name}")
    assert site.version() == "9.2.0", "a host that updated itself is not taken back"
    site.check_untouched()
    site.there.run("agentina rollback --yes")


def test_updater_killed_again_and_again(site: Site) -> None:
    """Wherever it is, the next one goes on; only a trial that was never begun leaves the release undecided."""
    site.set_times(soak=1)
    site.publish("9.5.0")
    choose = random.Random(5)
    upgrade = site.there.start("agentina upgrade 9.5.0 --yes")
    for _ in range(8):
        time.sleep(choose.uniform(0, 0.8))
        site.there.try_run("systemctl kill --signal=KILL agentina-update@default")
    upgrade.communicate(timeout=host.PATIENCE)
    update = site.status()["update"]
    assert (update["state"], update["verdict"]) in {("promoted", "good"), ("rolled-back", "inconclusive")}
    site.wait_for_version("9.5.0" if update["state"] == "promoted" else site.packaged)
    assert site.there.try_run("systemctl is-active agentina-trial@default").stdout.strip() == "inactive"
    site.check_untouched()
    site.there.try_run("agentina rollback --yes")
    site.wait_for_version(site.packaged)


def test_control_plane_away_says_nothing_about_the_release(site: Site) -> None:
    site.set_times(soak=1, patience=3)
    with site.upgrading("9.7.0", "slow", trial="activating") as upgrade:
        site.there.set_network(up=False)
        try:
            code = upgrade.wait(host.PATIENCE)
        finally:
            site.there.set_network(up=True)
    assert code == 1
    site.wait_for_version(site.packaged)
    update = site.status()["update"]
    assert (update["verdict"], update["reason"]) == ("inconclusive", "control-plane-away")
    site.check_untouched()


def test_no_room_says_nothing_about_the_release(site: Site) -> None:
    site.set_times(soak=1)
    site.publish("9.6.0")
    # Journals fit, and the archive; not the release.
    site.there.run("fallocate -l $(( $(stat -f -c '%a*%S' /) - (40 << 20) )) /.filler.update")
    try:
        code, document = site.upgrade("9.6.0")
    finally:
        site.there.free_disk()
    assert code == 1, document
    assert document["error"]["context"]["verdict"] == "inconclusive"
    assert "no room" in document["error"]["message"]
    assert site.version() == site.packaged
    site.check_untouched()


def test_operator_ends_a_trial(site: Site) -> None:
    site.set_times()
    with site.upgrading("9.3.0") as upgrade:
        site.there.run("agentina rollback --yes")
        assert upgrade.wait(host.PATIENCE) == 1
    site.wait_for_version(site.packaged)
    assert site.status()["update"]["reason"] == "operator"
    site.check_untouched()


def test_rollout_that_is_halted_ends_a_trial(site: Site) -> None:
    """Which would last longer than anybody here waits."""
    site.set_times(soak=3 * host.PATIENCE, patience=3 * host.PATIENCE)
    with site.upgrading("9.3.0") as upgrade:
        site.wish(b'{"id": "roll_w.1", "action": "rollback", "version": "9.3.0"}')
        assert upgrade.wait(host.PATIENCE) == 1
    site.wait_for_version(site.packaged)
    update = site.status()["update"]
    assert (update["state"], update["verdict"], update["reason"]) == ("rolled-back", "inconclusive", "rollout")
    site.check_untouched()


# --- a daemon's wish -----------------------------------------------------------------------------------------------


def test_order_of_the_control_plane_is_obeyed_once(site: Site) -> None:
    site.set_times(soak=1)
    site.publish("9.4.0")
    site.wish(b"{}")
    site.wish(b'{"id": "roll_x.1", "action": "upgrade", "version": "0.0.1"}')
    site.wait_for_report("refused")
    site.wish(b'{"id": "roll_x.2", "action": "upgrade", "version": "9.4.0"}')
    site.wait_for_report("promoted")
    assert site.version() == "9.4.0"
    site.wish(b'{"id": "roll_x.2", "action": "upgrade", "version": "9.4.0"}')
    site.wish(b'{"id": "roll_x.3", "action": "rollback", "version": "9.4.0"}')
    site.wait_for_report("rolled-back")
    site.wait_for_version(site.packaged)
    site.check_untouched()


# --- the end: tasks end with the host ------------------------------------------------------------------------------


def test_power_cut_on_trial_boots_what_ran_before(site: Site) -> None:
    site.set_times()
    with site.upgrading("9.3.0") as upgrade:
        site.there.cut()
        upgrade.wait(host.PATIENCE)
    site.there.boot()
    site.wait_for_version(site.packaged)
    site.wait_for_report("rolled-back")
    assert site.status()["update"]["reason"] == "interrupted"


def test_power_cuts_at_any_time(site: Site) -> None:
    """Nothing is lost of what was written here; what a cut takes of that is in the tests of the journal."""
    site.set_times(soak=1)
    site.publish(GOOD)
    choose = random.Random(7)
    for _ in range(3):
        upgrade = site.there.start(f"agentina upgrade {GOOD} --yes")
        time.sleep(choose.uniform(0.5, 6))
        site.there.cut()
        upgrade.kill()
        upgrade.communicate()
        site.there.boot()
        site.there.wait("! test -e /var/lib/agentina/.updates/default/pending", "the update is over")
        update = site.status()["update"]
        if update["state"] == "promoted":
            site.wait_for_version(GOOD)
            site.there.run("agentina rollback --yes")
        else:
            assert update["verdict"] == "inconclusive", update
        site.wait_for_version(site.packaged)


def test_uninstall_during_a_trial_leaves_nothing_running(site: Site) -> None:
    site.set_times()
    with site.upgrading("9.3.0") as upgrade:
        site.there.run("agentina uninstall --force --purge")
        upgrade.wait(host.PATIENCE)
    assert site.there.run("systemctl list-units --plain --no-legend --state=active 'agentina*@default*' || true") == ""
    assert site.there.run("ls -A /opt/agentina/instances /opt/agentina/trials /var/lib/agentina/.updates").split() == [
        "/opt/agentina/instances:", "/opt/agentina/trials:", "/var/lib/agentina/.updates:",
    ]  # fmt: skip

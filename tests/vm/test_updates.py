"""Releases that are good, and releases that are bad in every way, on a host whose tasks must not notice.

Each release is a real one of this checkout with a fault built in (:mod:`tests.vm.variants`), published in a real
repository that the control plane serves. After each attempt the host runs what it ran before, by itself; the reason is
recorded; the tasks are the same processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import release_publisher
from tests.vm import container, host, lab, variants

TASKS = 3
GOOD = "9.0.0"
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

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.there.try_run("agentina status --json").stdout))

    def set_times(
        self, *, soak: float = 60, patience: float = 60, start: float = 60, watchdog: float = 60, stop: float = 15
    ) -> None:
        """How long things may take: what ends a trial earlier is the release's fault, not this machine's."""
        units = {
            "agentina-update@": f"Environment=SOAK={soak}s PATIENCE={patience}s\nRestartSec=1s\n",
            "agentina-trial@": f"TimeoutStartSec={start}s\nWatchdogSec={watchdog}s\nTimeoutStopSec={stop}s\n",
            "agentina@": "RestartSec=100ms\n",
        }
        for unit, text in units.items():
            path = f"/run/systemd/system/{unit}.service.d/times.conf"
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
    assert site.version() == site.packaged
    if fault == "forgetful":
        # What a daemon tells the control plane that it does not hold is given away: its jobs are tried again.
        site.wait_for_tasks()
    site.check_untouched()

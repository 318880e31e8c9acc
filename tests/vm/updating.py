"""A host with running tasks whose releases are changed: what the tests of updates have in common."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.protocol import states
from tests.fakes import release_publisher
from tests.vm import host, lab, variants

#: What takes minutes, by waiting or by emulation.
LONG: Final = pytest.mark.skipif(
    "AGENTINA_VM_LONG" not in os.environ, reason="set AGENTINA_VM_LONG for what takes minutes"
)
#: What each task does.
SCRIPT: Final = "echo start $$; i=0; until [ -e finish ]; do i=$((i+1)); echo $$ $i; sleep 1; done; echo end; exit 7"
#: Seconds from the beginning of a trial within which a bad release is left, by the times that the units bring
#: (docs/explanation/updates.md); those of :meth:`Site.set_times` are shorter.
BOUND: Final = 300.0
#: Where an updater that is held says so, below /run.
HELD: Final = "agentina-test"
#: Prints each span of time in which the daemon did not answer on its socket; ends at a line on stdin.
WATCH: Final = """
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


class Site:
    """A host with running tasks, whose control plane has a release repository."""

    def __init__(
        self,
        there: host.Host,
        run_lab: lab.Lab,
        publisher: release_publisher.Publisher,
        builds: Path,
        *,
        tasks: int = 0,
    ) -> None:
        """``tasks`` run, each of which says a line a second until :meth:`finish_tasks`."""
        self.there = there
        self.lab = run_lab
        self._publisher = publisher
        self._builds = builds
        self._published: set[str] = set()
        self._tasks = tasks
        #: It could not be brought back to where a test begins.
        self.is_lost = False
        there.put(WATCH.encode(), "/root/watch.py")
        run_lab.activate(there, "default", f"--max-concurrent-tasks {max(tasks, 1)}", f"--role {there.name}")
        self.packaged = self.version()
        self.jobs = [self._submit() for _ in range(tasks)]
        self.wait_for_tasks()

    def _submit(self) -> str:
        resources = {"memory": "64MiB", "cpu": 0.1}
        return self.lab.fleet.submit_script(SCRIPT, role=self.there.name, resources=resources)

    def finish_tasks(self, count: int) -> list[str]:
        """Let so many come to their end, by a file in their workspace; their jobs, for the others are left running."""
        listed = self.there.run("ls -d /var/lib/agentina/.slots/*/task/workspace").split()[:count]
        self.there.run(f"touch {' '.join(f'{place}/finish' for place in listed)}")
        self._tasks -= count

        def ended() -> list[str]:
            return [job for job in self.jobs if self.lab.fleet.job(job).job.state in states.FINAL]

        host.wait_for(lambda: len(ended()) == count, f"{count} jobs ended")
        jobs = ended()
        self.jobs = [job for job in self.jobs if job not in jobs]
        self.wait_for_tasks()
        return jobs

    def wait_for_tasks(self) -> None:
        """Wait until every job runs, and remember their processes."""

        def run() -> bool:
            views = [self.lab.fleet.job(job) for job in self.jobs]
            if not all(view.job.state is states.State.RUNNING for view in views):
                return False
            return len(self.lab.units(self.there)) == self._tasks

        host.wait_for(run, f"{self._tasks} tasks run")
        self.pids = self.lab.units(self.there)

    def version(self) -> str:
        """What runs, by the daemon's own word."""
        self.lab.wait_online(self.there)
        return str(self.status()["version"])

    def wait_for_version(self, version: str) -> None:
        """Wait until a daemon of this version is online: PID 1 starts it while the update is over already."""
        host.wait_for(lambda: self.version() == version, f"{version} runs")

    def go_back(self) -> None:
        """Roll back to the package's release, which the host ran before."""
        self.there.run("agentina rollback --yes")
        self.wait_for_version(self.packaged)

    def settle(self) -> None:
        """Bring the host back to where a test begins, from wherever one that failed left it."""

        def is_over() -> bool:
            self.lab.wait_online(self.there)
            if (self.status().get("update") or {"state": "rolled-back"})["state"] not in {"promoted", "rolled-back"}:
                self.there.try_run("agentina rollback --yes")
                return False
            return True

        def all_run() -> bool:
            """Jobs whose tasks came to their end are replaced."""
            found = {job: self.lab.fleet.job(job).job.state for job in self.jobs}
            self.jobs = [self._submit() if state in states.FINAL else job for job, state in found.items()]
            return all(state is states.State.RUNNING for state in found.values())

        host.wait_for(is_over, "the update is over")
        if self.version() != self.packaged:
            self.go_back()
        host.wait_for(all_run, "all jobs run")
        self.wait_for_tasks()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.there.try_run("agentina status --json").stdout))

    def set_times(
        self,
        *,
        soak: float = 60,
        patience: float = 60,
        start: float = 60,
        watchdog: float = 60,
        stop: float = 15,
        memory: str = "1G",
    ) -> None:
        """How long things may take: what ends a trial earlier is the release's fault, not this machine's."""
        times = f"TimeoutStartSec={start}s\nWatchdogSec={watchdog}s\nTimeoutStopSec={stop}s\n"
        held = f"RuntimeDirectory={HELD}\nRuntimeDirectoryPreserve=yes\n"
        units = {
            "agentina-update@": f"Environment=SOAK={soak}s PATIENCE={patience}s\nRestartSec=1s\n{held}"
            "[Unit]\nStartLimitIntervalSec=0\n",
            "agentina-trial@": f"{times}MemoryMax={memory}\n",
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
            self.wait_for_trial(version, trial)
            yield upgrade
        finally:
            upgrade.kill()
            upgrade.communicate()

    def wait_for_trial(self, version: str, trial: str = "active") -> None:
        """Wait until a trial's unit is in this state."""
        state = "$(systemctl show -P ActiveState agentina-trial@default)"
        self.there.wait(f'test "{state}" = {trial}', f"{version} is on trial")

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

    def journal(self) -> dict[str, Any]:
        """What the updater knows."""
        return dict(json.loads(self.there.get("/var/lib/agentina/.updates/default/journal.json")))

    def check_left(self, version: str) -> None:
        """The host has left a bad version: in time, with the reason on its disk, and none of its tasks noticed."""
        self.wait_for_version(self.packaged)
        (reason,) = [skip["reason"] for skip in self.journal()["skipped"] if skip["version"] == version]
        update = self.journal()["update"]
        assert (update["version"], update["state"], update["reason"]) == (version, "rolled-back", reason)
        moments = {moment["state"]: moment["at_ms"] for moment in update["moments"]}
        took = (moments["rolled-back"] - moments.get("on-trial", moments["staged"])) / 1000
        assert took < BOUND
        self.check_untouched()

    def wait_for_report(self, state: str) -> None:
        """Wait until the daemon reports that the latest update is in this state."""
        try:
            host.wait_for(lambda: (self.status().get("update") or {}).get("state") == state, f"it is {state}")
        except AssertionError as error:
            units = self.there.run("systemctl list-units --all --no-pager --plain 'agentina*'")
            raise AssertionError(f"{error}\n{units}\n{self.status()}\n{self.log()}") from None

    def log(self) -> str:
        """What PID 1 and our units said; empty where nothing was logged yet, which journalctl(1) calls a failure."""
        return self.there.try_run("journalctl -n 60 --no-pager -o short-monotonic -u 'agentina*'").stdout

    def check_untouched(self) -> None:
        now = self.lab.units(self.there)
        tasks = [self.lab.fleet.job(job).tasks for job in self.jobs if now != self.pids]
        assert now == self.pids, (tasks, self.log())


@contextlib.contextmanager
def on(there: host.Host, run_lab: lab.Lab, directory: Path, **options: Any) -> Iterator[Site]:
    """A site on a host that has the package; its control plane serves a release repository from now on."""
    publisher = release_publisher.Publisher(directory / "publisher", place=run_lab.fleet.data / "releases")
    (builds := directory / "builds").mkdir()
    made = Site(there, run_lab, publisher, builds, **options)
    yield made
    run_lab.fleet.client.close()  # it was idle for long
    for job in made.jobs:
        if run_lab.fleet.job(job).job.state not in states.FINAL:
            run_lab.fleet.client.cancel_job(job)

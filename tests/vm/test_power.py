"""The power is cut at random moments: while the package is installed, while the host is activated, under a mix of jobs.

After each cut the host comes back by itself, no state is damaged, and in the end every job has ended right: one attempt
came to an end, with all that it said, and was reported as what it was; every other one was lost with the power.

A container that ``forgets`` what was not synced is back in a second, and is cut fifteen times. With
``AGENTINA_VM_CUTS`` it is cut so often, and so is a virtual machine, which takes half a minute for each.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.protocol import api, states
from tests.vm import container, host, lab, machine

#: Power cuts of each kind of host, in all.
CUTS: Final = {kind: int(os.environ.get("AGENTINA_VM_CUTS") or usual) for kind, usual in (("container", 15), ("vm", 0))}
#: How much slower than this machine a host is.
SLOWNESS: Final = {"container": 1.0, "vm": 6.0}
#: Jobs that are always on their way while the power is cut.
JOBS: Final = 8
LINES: Final = 20

_TALKS: Final = """
echo start
for i in $(seq {lines}); do echo line $i; sleep 0.05; done
echo work > result; echo end; exit {code}
"""
_ENDLESS: Final = "echo start; sleep 3600"
_AGAIN: Final = {"max_attempts": 60, "on": ["lost"], "backoff": 0.1, "max_backoff": 0.5}
#: What ends a task that the power took with it; the last where a host takes longer to come back than its lease lasts.
_WITH_POWER: Final = {
    states.Reason.HOST_RESTARTED,
    states.Reason.SUPERVISOR_DIED,
    states.Reason.LEASE_EXPIRED,
}
_random = random.Random(3)

NEEDRESTART: Final = "/etc/needrestart/conf.d/agentina.conf"
CONFIGURATION: Final = Path(__file__).parents[2] / f"packaging/deb/agentina/root{NEEDRESTART}"


@pytest.fixture(scope="module", params=["container", "vm"])
def there(
    request: pytest.FixtureRequest,
    new_container: Callable[..., container.Container],
    new_machine: Callable[..., machine.Machine],
) -> host.Host:
    """A host that forgets what was not synced, without the package."""
    if CUTS[request.param] == 0:
        pytest.skip("set AGENTINA_VM_CUTS to the number of power cuts")
    if request.param == "vm":
        return new_machine("power", installed=False)
    return new_container("power", installed=False, forgets=True)


@pytest.fixture
def installed(there: host.Host, package: Path) -> host.Host:
    """The same with the package."""
    if there.try_run("agentina --version").returncode != 0:
        lab.install_package(there, package)
    there.run("sync")
    return there


def cut_within(there: host.Host, script: str, *, seconds: float, text: str = "") -> None:
    """Cut the power at any moment of the first ``seconds`` of ``script``, and boot."""
    started = there.start(script)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.communicate(text.encode(), timeout=_random.uniform(0, seconds * SLOWNESS[there.kind]))
    there.cut()
    started.kill()
    started.communicate()
    there.boot()


def check_state(there: host.Host) -> None:
    """Nothing of any instance was unreadable, ever."""
    assert there.run("find /var/lib/agentina -name '*.damaged-*'").strip() == ""
    said = there.run("journalctl --output=export --unit='agentina@*' | grep -aE 'STATE_CORRUPT|damaged' || true")
    assert said == ""
    assert there.run("systemctl list-units --failed --plain --no-legend 'agentina*'").strip() == ""


def share(there: host.Host, part: float) -> int:
    """This part of the cuts, and one at least."""
    return max(1, round(CUTS[there.kind] * part))


def test_while_the_package_is_installed(there: host.Host, package: Path, measured: Callable[[str], None]) -> None:
    there.put(package.read_bytes(), f"/root/{package.name}")
    there.run("sync")
    install = f"DEBIAN_FRONTEND=noninteractive apt-get -y install /root/{package.name}"
    cuts = share(there, 0.2)
    for _ in range(cuts):
        cut_within(there, install, seconds=3)
        # What dpkg and apt themselves tell to do.
        there.run(f"dpkg --configure -a; apt-get -y --fix-broken install; {install} --reinstall", seconds=600)
        assert "agentina" in there.run("agentina --version")
        # Of configuration dpkg says only whether it is what it recorded, and its records are as old as the last sync.
        assert there.run(f"dpkg --audit; dpkg --verify agentina | grep -v {NEEDRESTART} || true") == ""
        assert there.get(NEEDRESTART) == CONFIGURATION.read_bytes()
        there.run("apt-get -y purge agentina; sync")
    measured(f"{there.kind}: {cuts} power cuts while the package was installed")


def test_while_the_host_is_activated(installed: host.Host, run_lab: lab.Lab, measured: Callable[[str], None]) -> None:
    there = installed
    run_lab.trust(there)
    there.run("sync")
    cuts = share(there, 0.2)
    agents, took = set(), []
    for number in range(cuts):
        token = run_lab.fleet.new_token()
        name = f"cut-{number}"
        script = f"agentina install --token-file - --instance {name} --control-plane {run_lab.url}"
        cut_within(there, f"{script} --ca-file {lab.CERTIFICATE}", seconds=2, text=token)
        started = time.monotonic()
        answer = run_lab.activate(there, name, token=token)
        took.append(time.monotonic() - started)
        agents.add(answer["agent_id"])
        run_lab.wait_online(there, name)
    assert len(agents) == cuts
    check_state(there)
    there.run("systemctl disable --now 'agentina@*'")
    again = statistics.median(took)
    measured(f"{there.kind}: {cuts} power cuts while an instance was activated; install again took {again:.1f} s")


class Mix:
    """Jobs of several kinds, of which some are always on their way."""

    def __init__(self, run_lab: lab.Lab, role: str) -> None:
        self._lab = run_lab
        self._role = role
        self._kinds = itertools.cycle(("succeeds", "fails", "once", "canceled", "too long"))
        #: Kind of each job.
        self.jobs: dict[str, str] = {}

    def top_up(self) -> None:
        """Submit until :data:`JOBS` are on their way, and cancel what is to be canceled."""
        open_jobs = [job for job in self.jobs if self._lab.fleet.job(job).job.state not in states.FINAL]
        for job in open_jobs:
            view = self._lab.fleet.job(job)
            if self.jobs[job] == "canceled" and view.job.state is states.State.RUNNING:
                self._lab.fleet.client.cancel_job(job)
        for _ in range(JOBS - len(open_jobs)):
            self._submit(next(self._kinds))

    def _submit(self, kind: str) -> None:
        script = _TALKS.format(lines=LINES, code=7 if kind == "fails" else 0)
        limits: dict[str, Any] = {"grace": "1s"}
        if kind in {"canceled", "too long"}:
            script = _ENDLESS
        if kind == "too long":
            limits["timeout"] = "1s"
        job = self._lab.fleet.submit_script(
            script,
            role=self._role,
            resources={"memory": "64MiB", "cpu": 0.5},
            limits=limits,
            retry={"max_attempts": 1} if kind == "once" else _AGAIN,
            artifacts=[] if script == _ENDLESS else ["result"],
        )
        self.jobs[job] = kind

    def finish(self) -> None:
        """Wait until all have ended, and check each."""
        for job, kind in self.jobs.items():
            if kind == "canceled" and self._lab.fleet.job(job).job.state not in states.FINAL:
                self._lab.fleet.client.cancel_job(job)
            view = self._lab.fleet.wait_final(job, seconds=2 * host.PATIENCE)
            self._check(kind, view)

    def _check(self, kind: str, view: api.JobView) -> None:
        """One attempt ended as it had to; the others were lost with the power."""
        right = {
            "succeeds": {(states.State.SUCCEEDED, states.Reason.EXIT_ZERO)},
            "fails": {(states.State.FAILED, states.Reason.EXIT_NONZERO)},
            "once": {(states.State.SUCCEEDED, states.Reason.EXIT_ZERO)},
            "canceled": {(states.State.CANCELED, states.Reason.CANCELED_BY_OPERATOR)},
            "too long": {(states.State.TIMED_OUT, states.Reason.TIME_LIMIT)},
        }[kind]
        if kind == "once":
            right |= {(states.State.LOST, reason) for reason in _WITH_POWER}
        assert (view.job.state, view.job.reason) in right, (kind, view)
        *before, last = view.tasks
        # What was canceled is canceled, also when the power took it before the host could end it.
        assert last.state is view.job.state or (kind == "canceled" and last.state is states.State.LOST), (kind, view)
        for task in before:
            assert (task.state, task.reason in _WITH_POWER) == (states.State.LOST, True), (kind, task)
        for task in view.tasks:
            said = self._lab.fleet.output(view.job.id, task=task.id).decode(errors="replace")
            assert said.count("start\n") <= 1, "started once"
        if view.job.state in {states.State.SUCCEEDED, states.State.FAILED}:
            wanted = ["start", *(f"line {line}" for line in range(1, LINES + 1)), "end"]
            assert self._lab.fleet.output(view.job.id, task=last.id).decode().splitlines() == wanted, (kind, view)
        if view.job.state is states.State.SUCCEEDED:
            artifact = bytearray()
            self._lab.fleet.client.read_artifact(view.job.id, "result", artifact.extend)
            assert artifact == b"work\n"

    def figures(self) -> str:
        """How many ended how, and what it took."""
        views = [self._lab.fleet.job(job) for job in self.jobs]
        ended = collections.Counter(view.job.state.value for view in views)
        again = sum(len(view.tasks) - 1 for view in views)
        counted = ", ".join(f"{count} {state}" for state, count in ended.items())
        return f"{len(views)} jobs ended right ({counted}); {again} attempts were lost with the power and made again"


def test_under_a_mix_of_jobs(installed: host.Host, run_lab: lab.Lab, measured: Callable[[str], None]) -> None:
    there = installed
    role = f"mix-{there.kind}"
    run_lab.activate(there, "default", "--max-concurrent-tasks 4", f"--role {role}")
    mix = Mix(run_lab, role)
    mix.top_up()
    started = time.monotonic()
    cuts = share(there, 0.6)
    for number in range(cuts):
        # Most cuts find it at work, each third one while it still boots and takes up what it left.
        if number % 3 != 2:
            run_lab.wait_online(there)
        time.sleep(_random.uniform(0, 3 * SLOWNESS[there.kind]))
        there.cut()
        there.power_on()
        mix.top_up()
    there.wait_up()
    mix.finish()
    measured(f"{there.kind}: {cuts} power cuts under jobs in {time.monotonic() - started:.0f} s; {mix.figures()}")
    check_state(there)

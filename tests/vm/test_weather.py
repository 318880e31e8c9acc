"""What happens to hosts: no network, no room, a wrong clock, a copy of their state.

An hour without a network is compressed: leases are at their shortest, fifteen seconds instead of three minutes, and the
network is away for two of them, while the wall clock is set an hour on. Nothing else counts the time of an outage,
but for the pauses between attempts to connect, which are at most a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from agentina.protocol import states, wire
from tests.vm import container, host, lab, machine

#: What a virtual machine has for a task.
_SMALL: Final = {"memory": "64MiB", "cpu": 0.5}
#: Seconds of an outage that outlasts leases: the control plane waits for a while after a lease is over.
_OUTAGE: Final = 2 * wire.MIN_LEASE_SECONDS


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> container.Container:
    made = new_container("weather")
    run_lab.activate(made, "default", "--role weather", "--max-concurrent-tasks 4")
    return made


@pytest.fixture(scope="module")
def real(new_machine: Callable[..., machine.Machine]) -> machine.Machine:
    return new_machine("real")


@pytest.fixture(scope="module")
def hasty(run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    """A control plane with the shortest leases."""
    root = tmp_path_factory.mktemp("hasty")
    with lab.running(
        root, run_lab.package, lease_seconds=wire.MIN_LEASE_SECONDS, heartbeat_seconds=wire.MIN_LEASE_SECONDS / 5
    ) as made:
        yield made


def wait_idle(there: host.Host) -> None:
    there.wait("[ $(systemctl list-units --plain --no-legend 'agentina-task@*' | wc -l) = 0 ]", "no task runs")


def check_lines(run_lab: lab.Lab, job: str, *, count: int) -> None:
    """It succeeded in one attempt, with all it said."""
    view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    assert view.job.state is states.State.SUCCEEDED, view.job
    assert len(view.tasks) == 1, view.tasks
    assert run_lab.fleet.output(job).decode().splitlines() == [f"line {number}" for number in range(1, count + 1)]


def test_network_away_for_less_than_a_lease(there: host.Host, run_lab: lab.Lab) -> None:
    """A task that ends meanwhile is reported when the network is back, with all it said."""
    job = run_lab.fleet.submit_script("for i in $(seq 50); do echo line $i; sleep 0.3; done", role="weather")
    run_lab.fleet.wait_state(job, states.State.RUNNING, seconds=host.PATIENCE)
    there.set_network(up=False)
    wait_idle(there)
    assert run_lab.fleet.job(job).job.state is states.State.RUNNING
    there.wait("agentina status --json | grep -q CONTROL_PLANE_UNREACHABLE", "it says so")
    there.set_network(up=True)
    check_lines(run_lab, job, count=50)


def test_network_away_for_an_hour(real: machine.Machine, hasty: lab.Lab, measured: Callable[[str], None]) -> None:
    """The host ends its task before the control plane gives the job to anybody; then the job is done once."""
    hasty.activate(real, "hasty", "--role hasty --max-concurrent-tasks 2")
    script = "case $AGENTINA_TASK_ID in *.1) sleep 1000;; esac; echo line 1"
    retry = {"on": ["lost"], "backoff": 0.1}
    job = hasty.fleet.submit_script(script, role="hasty", resources=_SMALL, limits={"grace": "1s"}, retry=retry)
    hasty.fleet.wait_state(job, states.State.RUNNING, seconds=host.PATIENCE)
    real.set_clock(3600)
    real.set_network(up=False)
    started = time.monotonic()
    try:
        wait_idle(real)
        ended = float(real.run("journalctl --output=short-unix -u 'agentina-task@*' | tail -n 1").split()[0]) - 3600
        real.wait("agentina status --instance hasty --json | grep -q CONTROL_PLANE_UNREACHABLE", "it says so")
        hasty.fleet.wait_state(job, states.State.QUEUED, seconds=host.PATIENCE)
        time.sleep(max(0.0, _OUTAGE - (time.monotonic() - started)))
    finally:
        real.set_network(up=True)
    view = hasty.fleet.wait_final(job, seconds=host.PATIENCE)
    assert [(task.state, task.reason) for task in view.tasks] == [
        (states.State.LOST, states.Reason.LEASE_EXPIRED),
        (states.State.SUCCEEDED, states.Reason.EXIT_ZERO),
    ]
    given_up = (view.tasks[0].ended_ms or 0) / 1000
    measured(f"without a network a host ended its task {given_up - ended:.1f} s before the control plane gave it up")
    assert ended < given_up
    assert hasty.fleet.output(job) == b"line 1\n"
    real.run("agentina uninstall --instance hasty --purge")
    real.set_clock(0)


def test_no_room(there: host.Host, run_lab: lab.Lab, measured: Callable[[str], None]) -> None:
    """A task that ends without room on the disk keeps its result; the host says what is wrong and goes on later."""
    job = run_lab.fleet.submit_script("sleep 15; exit 7", role="weather", retry={"max_attempts": 1})
    run_lab.fleet.wait_state(job, states.State.RUNNING, seconds=host.PATIENCE)
    there.fill_disk()
    waits = run_lab.fleet.submit_script("true", role="weather")
    wait_idle(there)
    there.wait("agentina status --json | grep -q DISK_FULL", "it says so")
    there.run("systemctl kill --signal=KILL --kill-whom=main agentina@default")
    there.wait("agentina status --json | grep -q DISK_FULL", "it starts without room too")
    assert run_lab.fleet.job(waits).job.state not in states.FINAL
    there.free_disk()
    started = time.monotonic()
    view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    assert (view.job.state, view.job.reason) == (states.State.FAILED, states.Reason.EXIT_NONZERO), view.job
    after = run_lab.fleet.wait_final(waits, seconds=host.PATIENCE)
    assert after.job.state is states.State.SUCCEEDED
    assert after.job.attempts == 1, after.tasks
    measured(f"work goes on {time.monotonic() - started:.0f} s after there is room on the disk again")
    assert there.try_run("agentina status").returncode == 0


@pytest.mark.parametrize("days", [-1, 1])
def test_wrong_clock_at_boot(days: int, real: machine.Machine, run_lab: lab.Lab) -> None:
    if real.try_run("agentina status").returncode != 0:
        run_lab.activate(real, "default", "--role real")
    real.set_clock(days * 86_400, at_boot=True)
    real.reboot()
    run_lab.wait_online(real)
    job = run_lab.fleet.submit_script("date +%s", role="real", resources=_SMALL)
    assert run_lab.fleet.wait_final(job, seconds=host.PATIENCE).job.state is states.State.SUCCEEDED
    wrong = int(run_lab.fleet.output(job)) - time.time()
    assert abs(wrong - days * 86_400) < 3600, "the clock was wrong all the time"
    real.set_clock(0)


def test_copied_state_quarantines_both(
    there: host.Host, run_lab: lab.Lab, new_container: Callable[..., container.Container]
) -> None:
    """The copy of a state directory on another host: neither works until an operator decides."""
    agent = run_lab.activate(there, "copied", "--role copied")["agent_id"]
    copy = new_container("copy")
    run_lab.trust(copy)
    archive = there.run("tar -C / -cf - etc/agentina/copied.yaml var/lib/agentina/copied | base64 -w0")
    copy.run("base64 -d | tar -C / -xpf - --same-owner && systemctl start agentina@copied", text=archive)

    def is_quarantined() -> bool:
        return run_lab.fleet.client.get_agent(agent).state == "quarantined"

    host.wait_for(is_quarantined, "the control plane quarantines the agent")
    job = run_lab.fleet.submit_script("true", role="copied")
    for made in (there, copy):
        made.wait("agentina status --instance copied | grep -qi quarantin", f"{made.name} says so")
    assert run_lab.fleet.job(job).job.state is states.State.QUEUED
    assert any("quarantine" in reason for reason in run_lab.fleet.job(job).blockers)
    assert run_lab.fleet.client.get_agent(run_lab.activate(there)["agent_id"]).state == "active", "no other instance"
    copy.run("systemctl disable --now agentina@copied")
    run_lab.fleet.answer("agent", "resume", agent)
    view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    assert (view.job.state, view.tasks[0].agent) == (states.State.SUCCEEDED, "weather/copied"), view

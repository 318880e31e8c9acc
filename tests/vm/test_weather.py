"""What happens to hosts: no network, no room, a copy of their state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina.protocol import states
from tests.vm import container, host, lab


@pytest.fixture(scope="module")
def run_lab(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    """As everywhere, but a host is heard often: it takes work again when its disk has room with its next poll."""
    with lab.running(tmp_path_factory.mktemp("control-plane"), package, heartbeat_seconds=5.0) as running:
        yield running


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> container.Container:
    made = new_container("weather")
    run_lab.activate(made, "default", "--role weather", "--max-concurrent-tasks 4")
    return made


def wait_idle(there: host.Host) -> None:
    there.wait("[ $(systemctl list-units --plain --no-legend 'agentina-task@*' | wc -l) = 0 ]", "no task runs")


def check_lines(run_lab: lab.Lab, job: str, *, count: int) -> None:
    """It succeeded in one attempt, with all it said."""
    view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    assert view.job.state is states.State.SUCCEEDED, view.job
    assert len(view.tasks) == 1, view.tasks
    assert run_lab.fleet.output(job).decode().splitlines() == [f"line {number}" for number in range(1, count + 1)]


def test_network_away(there: host.Host, run_lab: lab.Lab) -> None:
    """A task that ends meanwhile is reported when the network is back, with all it said."""
    job = run_lab.fleet.submit_script("for i in $(seq 50); do echo line $i; sleep 0.1; done", role="weather")
    run_lab.fleet.wait_state(job, states.State.RUNNING, seconds=host.PATIENCE)
    there.set_network(up=False)
    wait_idle(there)
    assert run_lab.fleet.job(job).job.state is states.State.RUNNING
    there.wait("agentina status --json | grep -q CONTROL_PLANE_UNREACHABLE", "it says so")
    there.set_network(up=True)
    check_lines(run_lab, job, count=50)


def test_no_room(there: host.Host, run_lab: lab.Lab, measured: Callable[[str], None]) -> None:
    """A task that ends without room on the disk keeps its result; the host says what is wrong and goes on later."""
    job = run_lab.fleet.submit_script("sleep 6; exit 7", role="weather", retry={"max_attempts": 1})
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

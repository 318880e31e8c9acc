"""A rollout over real hosts: a bad release ends at the canary and is taken back by itself, a good one reaches all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina.protocol import api
from tests.fakes import release_publisher
from tests.vm import container, host, lab, variants

BAD, GOOD = "9.1.0", "9.2.0"
#: A trial is short, and PID 1 is patient: what ends a trial is the release's fault, not this machine's.
TIMES = {
    "agentina-update@": "Environment=SOAK=4s PATIENCE=60s\nRestartSec=1s\n",
    "agentina-trial@": "TimeoutStartSec=60s\nWatchdogSec=60s\n",
}


@pytest.fixture(scope="module")
def run_lab(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    """A control plane that hears of its hosts often; it listens for 15 s before it decides."""
    with lab.running(tmp_path_factory.mktemp("control-plane"), package, heartbeat_seconds=5.0) as running:
        yield running


@pytest.fixture(scope="module")
def publish(run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], None]:
    """Builds and publishes a release, perhaps with a fault."""
    builds = tmp_path_factory.mktemp("variants")
    publisher = release_publisher.Publisher(
        tmp_path_factory.mktemp("publisher"), place=run_lab.fleet.data / "releases"
    )  # fmt: skip

    def make(version: str, fault: str) -> None:
        build = variants.build(run_lab.package, builds, version, fault)
        publisher.place.publish(build, channel="stable", signers=publisher.publishers[:1], now=release_publisher.NOW)
        publisher.sign_online()

    return make


@pytest.fixture(scope="module")
def hosts(
    publish: Callable[[str, str], None], new_container: Callable[..., container.Container], run_lab: lab.Lab
) -> list[container.Container]:
    """Two hosts with an agent each. The repository is there first: its root is trusted at activation."""
    made = [new_container(f"rolled-{number}") for number in range(2)]
    for there in made:
        for unit, text in TIMES.items():
            there.put(f"[Service]\n{text}".encode(), f"/run/systemd/system/{unit}.service.d/times.conf")
        there.run("systemctl daemon-reload")
        run_lab.activate(there)
    return made


def versions(run_lab: lab.Lab) -> list[str]:
    return [one.version for one in run_lab.fleet.client.list_agents().agents]


def roll_out(run_lab: lab.Lab, version: str) -> api.RolloutView:
    """Start a rollout and follow it to its end."""
    wanted = api.RolloutStart(version=version, soak_seconds=5, batch_percent=100, watch_seconds=5)
    client = run_lab.fleet.client
    rollout = client.start_rollout(wanted).rollout.id

    def ended() -> api.RolloutView | None:
        view = client.get_rollout(rollout, limit=100)
        return view if view.rollout.state in {"completed", "rolled-back"} else None

    view = host.wait_for(ended, f"the rollout of {version} ends", pause=1)
    assert isinstance(view, api.RolloutView)
    return view


def test_a_bad_release_stops_at_the_canary_and_a_good_one_reaches_all(
    publish: Callable[[str, str], None],
    run_lab: lab.Lab,
    hosts: list[container.Container],
    measured: Callable[[str], None],
) -> None:
    (packaged,) = set(versions(run_lab))
    publish(BAD, "crash")
    view = roll_out(run_lab, BAD)
    story = [line.text for line in view.lines]
    assert (view.rollout.state, view.rollout.gate) == ("rolled-back", "rollbacks"), story
    assert "crashed" in view.rollout.reason
    host.wait_for(lambda: set(versions(run_lab)) == {packaged}, "all run what they ran before")
    touched = [
        there for there in hosts if there.try_run("ls /var/lib/agentina/.updates/default/journal.json").returncode == 0
    ]
    assert len(touched) == 1, "the canary only"

    publish(GOOD, "")
    view = roll_out(run_lab, GOOD)
    story = [line.text for line in view.lines]
    assert (view.rollout.state, view.rollout.agents) == ("completed", {"updated": 2}), story
    assert set(versions(run_lab)) == {GOOD}
    for there in hosts:
        assert json.loads(there.run("agentina status --json"))["version"] == GOOD
    took = (view.lines[-1].at_ms - view.rollout.created_ms) / 1000
    measured(f"a rollout over {len(hosts)} hosts in two stages: {took:.0f} s")

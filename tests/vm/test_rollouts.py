"""Rollouts over real hosts: what is bad ends at the canary and is taken back by itself, what is good reaches all.

First of releases, then of settings; the good release has a fault that only some settings show. A task on each host goes
on through everything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentina.protocol import api, states
from tests.fakes import release_publisher
from tests.vm import container, host, lab, updating, variants

BAD, GOOD = "9.1.0", "9.2.0"
#: Tasks that the owner of each host allows at once.
OWN_LIMITS = {"rolled-0": 5, "rolled-1": 2, "rolled-2": 5}
SMALL = {"memory": "64MiB", "cpu": 0.1}
#: The host whose owner wants no settings of the control plane.
CLOSED = "rolled-2"
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


@dataclasses.dataclass
class Site:
    """Hosts with an agent each, and a task on each that says a line every half second."""

    lab: lab.Lab
    hosts: dict[str, container.Container]
    publish: Callable[[str, str], None]
    jobs: list[str]
    pids: list[dict[str, int]] = dataclasses.field(default_factory=list)

    def check_untouched(self) -> None:
        assert [self.lab.units(there) for there in self.hosts.values()] == self.pids

    def check_runs_good(self) -> None:
        """No release is to blame."""
        for there in self.hosts.values():
            assert GOOD in there.run("systemctl is-active agentina@default && readlink /opt/agentina/instances/default")
        self.check_untouched()

    def versions(self) -> set[str]:
        return {one.version for one in self.lab.fleet.client.list_agents().agents}

    def status(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.hosts[name].run("agentina status --json")))

    def configurations(self) -> dict[str, str | None]:
        """What holds on each host, by the control plane's word."""
        return {one.hostname: one.configuration for one in self.lab.fleet.client.list_agents().agents}

    def follow(self, rollout: str) -> api.RolloutView:
        """Follow a rollout to its end."""

        def ended() -> api.RolloutView | None:
            view = self.lab.fleet.client.get_rollout(rollout, limit=100)
            return view if view.rollout.state in {"completed", "rolled-back"} else None

        view = host.wait_for(ended, f"rollout {rollout} ends", pause=0.5)
        assert isinstance(view, api.RolloutView)
        return view

    def roll_out(self, version: str, fault: str) -> api.RolloutView:
        """A release, to its end."""
        self.publish(version, fault)
        wanted = api.RolloutStart(version=version, soak_seconds=5, batch_percent=100, watch_seconds=5)
        return self.follow(self.lab.fleet.client.start_rollout(wanted).rollout.id)

    def set_all(self, **wanted: Any) -> api.RolloutView:
        """Settings by the operator's command, to the rollout's end."""
        file = self.lab.fleet.root / "settings.yaml"
        file.write_text(json.dumps(wanted))  # which is YAML
        options = ["--soak", "1s", "--batch", "100%", "--watch", "1s"]
        started = self.lab.fleet.document("rollout", "start", "--config", str(file), *options)
        return self.follow(started["rollout"]["id"])

    def anomaly_of(self, version: str) -> api.AnomalyReport | None:
        """What a host said of settings or a release that it left."""
        client = self.lab.fleet.client
        found = [client.get_anomaly(one.id) for one in client.list_anomalies({"kind": "configuration"}).anomalies]
        return next((report for view in found for report in view.reports if report.release == version), None)


@pytest.fixture(scope="module")
def site(
    publish: Callable[[str, str], None], new_container: Callable[..., container.Container], run_lab: lab.Lab
) -> Site:
    """The repository is there before the hosts: its root is trusted at activation."""
    made = Site(run_lab, {name: new_container(name) for name in OWN_LIMITS}, publish, [])
    for name, there in made.hosts.items():
        for unit, text in TIMES.items():
            there.put(f"[Service]\n{text}".encode(), f"/run/systemd/system/{unit}.service.d/times.conf")
        there.run("systemctl daemon-reload")
        run_lab.activate(there, "default", f"--max-concurrent-tasks {OWN_LIMITS[name]}", f"--role {name}")
        made.jobs.append(run_lab.fleet.submit_script("while sleep 0.5; do echo here; done", role=name, resources=SMALL))
    made.hosts[CLOSED].run(
        "echo 'remote_settings: false' >> /etc/agentina/default.yaml && systemctl restart agentina@default"
    )
    for job in made.jobs:
        run_lab.fleet.wait_state(job, states.State.RUNNING, seconds=host.PATIENCE)
    made.pids += [run_lab.units(there) for there in made.hosts.values()]
    return made


def test_a_bad_release_stops_at_the_canary_and_a_good_one_reaches_all(
    site: Site, measured: Callable[[str], None]
) -> None:
    (packaged,) = site.versions()
    view = site.roll_out(BAD, "crash")
    story = [line.text for line in view.lines]
    assert (view.rollout.state, view.rollout.gate) == ("rolled-back", "rollbacks"), story
    assert "crashed" in view.rollout.reason
    host.wait_for(lambda: site.versions() == {packaged}, "all run what they ran before")
    journal = "test -e /var/lib/agentina/.updates/default/journal.json"
    assert sum(there.try_run(journal).returncode == 0 for there in site.hosts.values()) == 1, "the canary only"
    site.check_untouched()

    view = site.roll_out(GOOD, "touchy")
    story = [line.text for line in view.lines]
    assert (view.rollout.state, view.rollout.agents) == ("completed", {"updated": 3}), story
    assert site.versions() == {GOOD}
    assert {site.status(name)["version"] for name in site.hosts} == {GOOD}
    site.check_untouched()
    took = (view.lines[-1].at_ms - view.rollout.created_ms) / 1000
    measured(f"a rollout over {len(site.hosts)} hosts in two stages: {took:.0f} s")


@pytest.fixture
def rolled_out(site: Site) -> Site:
    """The site with the good release on every host."""
    if site.versions() != {GOOD}:
        assert site.roll_out(GOOD, "touchy").rollout.state == "completed"
    return site


def test_settings_reach_all_who_take_them_and_an_owner_stays_stricter(rolled_out: Site) -> None:
    site = rolled_out
    view = site.set_all(max_concurrent_tasks=3, keep_failed_days=1.0)
    assert (view.rollout.state, view.rollout.agents["updated"]) == ("completed", 2), view.lines
    version = view.rollout.version
    assert site.configurations() == dict.fromkeys(OWN_LIMITS, version) | {CLOSED: ""}
    limits = {name: site.status(name)["max_concurrent_tasks"] for name in site.hosts}
    assert limits == {"rolled-0": 3, "rolled-1": 2, CLOSED: 5}
    (reason,) = [one.reason for one in view.agents if one.reason]
    assert "takes no settings" in reason
    site.check_untouched()


@pytest.mark.parametrize(
    ("wanted", "reason"), [("debug", "crashed"), pytest.param("error", "no-heartbeat", marks=updating.LONG)]
)
def test_settings_that_a_daemon_cannot_live_with_are_left(rolled_out: Site, wanted: str, reason: str) -> None:
    """By the canary itself; nobody else is given them."""
    site = rolled_out
    before = site.configurations()
    view = site.set_all(log_level=wanted)
    assert (view.rollout.state, view.rollout.gate) == ("rolled-back", "rollbacks"), view.lines
    (canary,) = [one for one in view.agents if one.standing != "pending"]
    for said in (view.rollout.reason, canary.reason):
        assert reason in said
    assert site.configurations() == before
    report = host.wait_for(lambda: site.anomaly_of(view.rollout.version), "the control plane has the anomaly")
    assert report.evidence["reason"] == reason
    site.check_runs_good()


@updating.LONG
def test_settings_that_a_daemon_runs_with_and_does_not_start_with_are_left(rolled_out: Site) -> None:
    site = rolled_out
    before = site.configurations()
    view = site.set_all(log_level="warning")
    assert view.rollout.state == "completed", view.lines
    site.hosts["rolled-0"].try_run("systemctl restart agentina@default")
    host.wait_for(lambda: site.configurations()["rolled-0"] == before["rolled-0"], "it has left them")
    report = host.wait_for(lambda: site.anomaly_of(view.rollout.version), "the control plane has the anomaly")
    assert report.evidence["reason"] == "crashed"
    site.check_runs_good()

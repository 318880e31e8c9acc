"""Settings rolled out by the control plane to hosts that keep, try and leave them as real ones do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.cli import main
from agentina.control.services import rollout_duty
from agentina.host import remote
from agentina.host.instance import config
from agentina.protocol import wire
from agentina.system import clock
from tests.integration.control import conftest, simulated, test_rollouts

OWN = config.HostConfig(control_plane="http://localhost", max_concurrent_tasks=4)


class Raised:
    """Takes the host's anomalies."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def report(self, _kind: str, code: str, _summary: str, **_: Any) -> None:
        self.codes.append(code)


class Host(test_rollouts.Host):
    """An agent with the daemon's own part for settings."""

    path: Path
    own = OWN
    #: A release that knows no settings at all.
    is_old = False
    #: It ends whenever it has new settings, before it says so.
    is_broken = False

    def begin(self) -> None:
        self.raised = Raised()
        self.remote = remote.Remote(
            self.path, self.own, agent_id=self.activated.agent_id,
            trusted={key.id: key for key in self.activated.keys}, clocks=clock.SystemClock(),
        )  # fmt: skip
        self.remote.start()

    def turn(self) -> None:
        version = self.remote.version
        known: dict[str, Any] = {
            "configuration": version, "configuration_report": self.remote.report()
        } if not self.is_old else {}  # fmt: skip
        message = wire.Heartbeat(session=self.session, version=self.version, **known)
        answer = msgspec.convert(self.call("POST", "/v1/agent/heartbeat", message), wire.HeartbeatAnswer)
        if self.is_old:
            return
        self.remote.confirm(version)
        taken = self.remote.obey(answer.directives.configuration, self.raised)  # type: ignore[arg-type]
        if taken and self.is_broken:
            for _ in range(remote.MOST_STARTS):
                self.begin()

    beat = turn


class Fleet(test_rollouts.Fleet):
    """Such hosts."""

    def __init__(self, control: Any, path: Path) -> None:
        super().__init__(control)
        self.path = path

    def add(self, count: int, **token: Any) -> list[Any]:
        added = []
        for _ in range(count):
            host = Host(self.control.url)
            host.activate(self.operator.mint(**token))
            host.open(version=test_rollouts.OLD)
            host.path = self.path / f"{host.activated.agent_id}.json"
            host.begin()
            host.turn()
            added.append(host)
        self.hosts += added
        return added

    def start(self, **changes: Any) -> str:
        plan = {"settings": {"max_concurrent_tasks": 2}, "soak_seconds": 20, "watch_seconds": 10, **changes}
        return str(self.operator.call("POST", "/v1/rollouts", plan)["rollout"]["id"])

    def holding(self, version: str) -> int:
        return sum(host.remote.version == version for host in self.hosts)  # type: ignore[attr-defined]

    def wanted(self, rollout: str) -> str:
        return str(self.show(rollout)["rollout"]["version"])


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with conftest.ControlPlane(tmp_path / "data", **test_rollouts.UNHURRIED) as control:
        yield Fleet(control, tmp_path)


def test_good_settings_reach_everybody_by_stages_and_can_be_taken_back(fleet: Fleet) -> None:
    fleet.add(6)
    rollout = fleet.start(batch_percent=50)
    version = fleet.wanted(rollout)
    fleet.turns(4)
    assert fleet.holding(version) == 1, "the canary"
    fleet.turns(16)
    assert (fleet.state(rollout), fleet.holding(version)) == ("completed", 6)
    assert {host.remote.effective().max_concurrent_tasks for host in fleet.hosts} == {2}  # type: ignore[attr-defined]
    shown = fleet.show(rollout)
    assert shown["rollout"]["kind"] == "configuration"
    assert shown["plan"]["settings"] == {"max_concurrent_tasks": 2}
    assert {agent["version"] for agent in shown["agents"]} == {version}
    # An agent that comes later gets them, too.
    fleet.add(1)
    fleet.turns(6)
    assert fleet.holding(version) == 7
    second = fleet.start(settings={"max_concurrent_tasks": 1}, soak_seconds=5, watch_seconds=5, batch_percent=100)
    fleet.turns(10)
    assert fleet.holding(fleet.wanted(second)) == 7
    fleet.act(second, "abort", reason="too few")
    fleet.turns(4)
    assert (fleet.state(second), fleet.holding(version)) == ("rolled-back", 7)


@pytest.mark.parametrize("fault", ["is_broken", "memory"])
def test_settings_that_do_not_hold_are_halted_at_the_canary_and_taken_back(fleet: Fleet, fault: str) -> None:
    hosts = fleet.add(6)
    wanted = {"max_concurrent_tasks": 1, "memory_reserve": 8 << 30}
    for host in hosts:
        host.is_broken = fault == "is_broken"
        if fault == "memory":
            host.remote.facts = lambda: wire.HostFacts(memory_bytes=4 << 30)
    rollout = fleet.start(settings=wanted)
    fleet.turns(8)
    one = fleet.show(rollout)["rollout"]
    assert (one["state"], one["gate"]) == ("rolled-back", "rollbacks")
    assert fleet.holding("none") == 6
    assert sum(host.remote.report() is not None for host in hosts) == 1, "only the canary ever had them"
    if fault == "memory":
        assert [code for host in hosts for code in host.raised.codes] == ["CONFIGURATION_LEFT"]


def test_hosts_that_take_none_are_left_out(fleet: Fleet) -> None:
    old, closed, *others = fleet.add(5)
    old.is_old = True
    closed.own = msgspec.structs.replace(OWN, remote_settings=False)
    closed.begin()
    for host in (old, closed):
        host.turn()
    rollout = fleet.start(canary=2, batch_percent=100)
    fleet.turns(16)
    assert fleet.state(rollout) == "completed"
    assert all(host.remote.version == fleet.wanted(rollout) for host in others)
    reasons = {agent["id"]: agent["reason"] for agent in fleet.show(rollout)["agents"] if agent["reason"]}
    assert set(reasons) == {old.activated.agent_id, closed.activated.agent_id}
    assert all("takes no settings" in reason for reason in reasons.values())


def test_it_goes_on_after_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    fleet: Fleet
    with conftest.ControlPlane(tmp_path / "data", **test_rollouts.UNHURRIED) as control:
        fleet = Fleet(control, tmp_path)
        fleet.add(4)
        rollout = fleet.start(canary=2, batch_percent=100)
        fleet.turns(2)
        version = fleet.wanted(rollout)
        assert fleet.holding(version) == 2
        token, offset = control.token, control.clock.wall_offset_ms
        control.operator.close()
    with conftest.ControlPlane(tmp_path / "data", **test_rollouts.UNHURRIED) as control:
        control.clock.wall_offset_ms = offset
        again = fleet
        again.control, again.operator = control, simulated.Operator(control.url, token)
        again.duty = rollout_duty.Rollouts(control.plane)
        # Nobody was heard yet: what was stored counts, and nothing is halted for it.
        again.look()
        assert again.state(rollout) == "running"
        for host in again.hosts:
            host.close()
            host._address = control.url.removeprefix("http://")
            host.authenticate(now_ms=control.clock.wall_ms())
            host.open(version=test_rollouts.OLD)
        again.turns(12)
        assert (again.state(rollout), again.holding(version)) == ("completed", 4)
        again.operator.close()


def test_a_release_and_settings_live_side_by_side_but_not_at_the_same_time(fleet: Fleet) -> None:
    fleet.add(3)
    first = fleet.start(soak_seconds=5, watch_seconds=5, batch_percent=100)
    release = {"version": test_rollouts.NEW}
    with pytest.raises(errors.AgentinaError, match="ROLLOUT_OVERLAPS"):
        fleet.operator.call("POST", "/v1/rollouts", release)
    fleet.turns(10)
    assert fleet.state(first) == "completed"
    fleet.operator.call("POST", "/v1/rollouts", release)
    # The settings are still those that everybody is to have: it could be taken back.
    assert fleet.act(first, "abort")["rollout"]["state"] == "rolling-back"
    for body in ({}, {"version": "1.0.0", "settings": {}}, {"settings": {"control_plane": "http://evil"}}):
        with pytest.raises(errors.AgentinaError, match="INPUT_"):
            fleet.operator.call("POST", "/v1/rollouts", body)


def test_the_command_line_rolls_out_a_file_and_shows_the_skew(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.add(2)
    monkeypatch.setenv("AGENTINA_CONTROL_PLANE", fleet.control.url)
    monkeypatch.setenv("AGENTINA_API_TOKEN", fleet.control.token)
    file = tmp_path / "settings.yaml"
    file.write_text("max_concurrent_tasks: 3\nlog_level: debug\ndisk_reserve: 2GiB\nheartbeat_seconds: 2m\n")
    assert main.run(["rollout", "start", "--config", str(file), "--soak", "5s"]) == 0
    rollout = capsys.readouterr().out.strip()
    fleet.turns(3)
    version = fleet.wanted(rollout)
    assert main.run(["agent", "list"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()[1:]]
    assert sorted(word for line in lines for word in line if word in {version, "none!"}) == sorted([version, "none!"])
    assert "1 of 2 agents have other settings" in captured.err
    assert main.run(["rollout", "status", rollout]) == 0
    shown = capsys.readouterr().out
    for part in ("heartbeat_seconds: 120", "max_concurrent_tasks: 3", f"disk_reserve: {2 << 30}", "log_level: debug"):
        assert part in shown
    assert b"agents_configuration_skew 0.5" in fleet.operator.call("GET", "/metrics")
    for wrong in ("max_concurrent_task: 3", "max_concurrent_tasks: 0", "memory_reserve: much", "{"):
        file.write_text(wrong)
        assert main.run(["rollout", "start", "--config", str(file)]) == errors.Exit.USAGE
    assert main.run(["rollout", "start"]) == errors.Exit.USAGE

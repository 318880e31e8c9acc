from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import agentina
from agentina import errors
from agentina.control.services import rollout_duty, rollout_members
from agentina.control.store import rollouts
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.fakes import deadlines
from tests.integration.control import conftest, simulated

OLD, NEW = "1.0.0", "1.1.0"
#: The process's own duty does not look while a test does.
UNHURRIED = {"rollout_seconds": 1e9}


class Host(simulated.Agent):
    """An agent that obeys orders for another release as hosts do: once each, with a report."""

    version = OLD
    is_bad = False
    update: wire.UpdateReport | None = None
    window = pin = ""
    acted: list[str]

    def beat(self) -> wire.UpdateOrder | None:
        message = wire.Heartbeat(
            session=self.session, version=self.version, update=self.update, update_window=self.window,
            update_pin=self.pin,
        )  # fmt: skip
        answer = msgspec.convert(self.call("POST", "/v1/agent/heartbeat", message), wire.HeartbeatAnswer)
        return answer.directives.update

    def turn(self) -> None:
        order = self.beat()
        if order is None or order.id in self.acted:
            return
        self.acted.append(order.id)
        if order.action == "rollback" or self.is_bad:
            verdict: Any = "bad" if order.action == "upgrade" else "good"
            self.version, state, reason = OLD, "rolled-back", "crashed" if verdict == "bad" else ""
        else:
            self.version, state, reason, verdict = order.version, "promoted", "", "good"
        self.update = wire.UpdateReport(
            id=order.id, version=order.version, state=state, verdict=verdict, reason=reason
        )  # fmt: skip


class Fleet:
    """Hosts of one control plane, whose clock is stepped."""

    def __init__(self, control: conftest.ControlPlane) -> None:
        self.control = control
        self.operator: simulated.Operator = control.operator
        self.hosts: list[Host] = []
        self.duty = rollout_duty.Rollouts(control.plane)

    def look(self) -> None:
        """Let five seconds pass, after which the duty looks."""
        self.control.clock.boot_offset += 5
        self.control.clock.wall_offset_ms += 5000
        self.duty._next = self.duty._judges_at = 0.0
        self.duty._again.clear()
        self.control.run(self.duty.keep_going)

    def add(self, count: int, **token: Any) -> list[Host]:
        added = []
        for _ in range(count):
            host = Host(self.control.url)
            host.activate(self.operator.mint(**token))
            host.open(version=OLD, facts={"architecture": "x86_64"})
            host.acted = []
            host.beat()
            added.append(host)
        self.hosts += added
        return added

    def start(self, **changes: Any) -> str:
        plan = {"version": NEW, "soak_seconds": 20, "watch_seconds": 10, **changes}
        return str(self.operator.call("POST", "/v1/rollouts", plan)["rollout"]["id"])

    def turns(self, count: int, *, away: list[Host] | None = None) -> None:
        for _ in range(count):
            for host in self.hosts:
                if host not in (away or []):
                    host.authenticate(now_ms=self.control.clock.wall_ms())
                    host.turn()
            self.look()

    def show(self, rollout: str) -> Any:
        return self.operator.call("GET", f"/v1/rollouts/{rollout}")

    def act(self, rollout: str, verb: str, **body: str) -> Any:
        return self.operator.call("POST", f"/v1/rollouts/{rollout}/{verb}", body)

    def state(self, rollout: str) -> str:
        return str(self.show(rollout)["rollout"]["state"])

    def updated(self) -> int:
        return sum(host.version == NEW for host in self.hosts)

    def audit(self) -> list[tuple[str, str]]:
        entries = self.operator.call("GET", "/v1/audit?action=rollout.&limit=1000")["entries"]
        return [(entry["action"], entry["actor"]) for entry in entries if "refused" not in entry["detail"]]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with conftest.ControlPlane(tmp_path / "data", **UNHURRIED) as control:
        yield Fleet(control)


@pytest.fixture
def control(fleet: Fleet) -> conftest.ControlPlane:
    """The one that the command line talks to."""
    return fleet.control


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(errors.AgentinaError) as caught:
        call()
    return caught.value.code


def test_a_good_release_reaches_everybody_by_stages(fleet: Fleet) -> None:
    fleet.add(6)
    rollout = fleet.start(batch_percent=50)
    fleet.turns(4)
    assert fleet.updated() == 1
    shown = fleet.show(rollout)
    assert shown["rollout"]["agents"] == {"updated": 1, "pending": 5}
    assert (shown["rollout"]["stage"], shown["rollout"]["phase"]) == (1, "watching")
    fleet.turns(25)
    assert (fleet.state(rollout), fleet.updated()) == ("completed", 6)
    assert all(len(host.acted) == 1 for host in fleet.hosts)
    assert fleet.audit() == [("rollout.start", "operator:admin"), ("rollout.complete", "control-plane")]
    texts = [line["text"] for line in fleet.show(rollout)["lines"]]
    assert texts[0] == "started by operator:admin for all agents: 6 agents"
    assert texts[-1] == f"complete: 6 agents of 6 run {NEW}"
    assert [one["id"] for one in fleet.operator.call("GET", "/v1/rollouts")["rollouts"]] == [rollout]


@pytest.mark.parametrize("is_bad", [False, True])
def test_a_look_in_slices_comes_to_the_same(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, *, is_bad: bool) -> None:
    monkeypatch.setattr(rollout_members, "SLICE", 2)
    monkeypatch.setattr(rollout_duty, "_MOST_ROWS", 2)
    for host in fleet.add(9):
        host.is_bad = is_bad
    rollout = fleet.start(batch_percent=30)
    control = fleet.control.plane
    for turn in range(24):
        if turn == 3:
            fleet.operator.call("POST", f"/v1/rollouts/{rollout}/skip", {"agent": fleet.hosts[-1].activated.agent_id})
        if turn == 5:
            # As after a start: what is remembered is read again, slice by slice.
            control.members.keep_only([])
        fleet.turns(1)

        async def same() -> bool:
            stored = control.store.read(lambda tx: rollouts.find(tx, rollout))
            assert stored is not None
            remembered = await control.members.read(stored)
            known = control.store.read(lambda tx: rollouts.members(tx, stored.id))
            return list(remembered.values()) == known and control.members.is_current(stored)

        assert fleet.control.run(same)
    assert (fleet.state(rollout), fleet.updated()) == (("rolled-back", 0) if is_bad else ("completed", 8))


def test_a_bad_release_is_halted_and_taken_back(fleet: Fleet) -> None:
    for host in fleet.add(5):
        host.is_bad = True
    rollout = fleet.start()
    fleet.turns(6)
    shown = fleet.show(rollout)["rollout"]
    assert (shown["state"], shown["gate"]) == ("rolled-back", "rollbacks")
    assert "crashed" in shown["reason"]
    assert sum(bool(host.acted) for host in fleet.hosts) == 1
    assert [act for act, _ in fleet.audit()] == ["rollout.start", "rollout.halt", "rollout.roll-back-complete"]
    metrics = fleet.operator.call("GET", "/metrics").decode()
    assert 'rollouts_halted_total{gate="rollbacks"} 1.0' in metrics
    (found,) = fleet.operator.call("GET", "/v1/anomalies")["anomalies"]
    assert (found["kind"], found["code"], found["count"]) == ("rollout", "ROLLOUT_HALTED", 1)
    assert "crashed" in found["summary"]


def test_tasks_that_fail_on_canaries_halt_it(fleet: Fleet) -> None:
    hosts = fleet.add(4)
    for host in hosts:
        for _ in range(10):
            fleet.operator.submit(retry={"max_attempts": 1})
        for task in host.take(slots=8):
            host.run(task)
    rollout = fleet.start(soak_seconds=3600)
    fleet.turns(4)
    (canary,) = (host for host in hosts if host.version == NEW)
    for _ in range(4):
        for _ in range(8):
            fleet.operator.submit(retry={"max_attempts": 1})
        for task in canary.take(slots=8):
            canary.run(task, State.FAILED, Reason.EXIT_NONZERO)
        for host in hosts:
            for task in host.take(slots=2):
                host.run(task)
    work = {one["who"]: (one["tasks"], one["failed"]) for one in fleet.show(rollout)["work"]}
    assert work["updated"][1] > 5
    assert work["past"] == (8, 0)
    fleet.turns(4)
    shown = fleet.show(rollout)["rollout"]
    assert (shown["state"], shown["gate"]) == ("rolled-back", "failures")
    assert canary.version == OLD


def test_a_poll_that_waits_brings_the_order_at_once(fleet: Fleet) -> None:
    (host,) = fleet.add(1)
    answers: list[wire.PollAnswer] = []
    thread = threading.Thread(target=lambda: answers.append(host.poll(wait=30)))
    thread.start()
    rollout = fleet.start()
    fleet.look()
    thread.join(deadlines.HANG)
    assert answers[0].directives.update == wire.UpdateOrder(id=f"{rollout}.1", action="upgrade", version=NEW)


def test_pause_resume_and_abort(fleet: Fleet) -> None:
    fleet.add(4)
    rollout = fleet.start(soak_seconds=0)
    fleet.act(rollout, "pause", reason="lunch")
    fleet.turns(5)
    assert fleet.updated() == 0
    shown = fleet.show(rollout)["rollout"]
    assert (shown["state"], shown["reason"]) == ("paused", "lunch")
    assert refused(lambda: fleet.act(rollout, "pause")) == "STATE_CONFLICT"
    fleet.act(rollout, "resume")
    fleet.turns(8)
    assert fleet.updated() >= 2
    fleet.act(rollout, "abort", reason="no")
    assert refused(lambda: fleet.act(rollout, "abort")) == "STATE_CONFLICT"
    assert refused(lambda: fleet.act("roll_none", "abort")) == "NOT_FOUND"
    fleet.turns(3)
    shown = fleet.show(rollout)["rollout"]
    assert (shown["state"], shown["reason"]) == ("rolled-back", "aborted by operator:admin: no")
    assert fleet.updated() == 0
    assert [act for act, _ in fleet.audit()] == [
        "rollout.start", "rollout.pause", "rollout.resume", "rollout.abort", "rollout.roll-back-complete",
    ]  # fmt: skip


def test_a_paused_order_is_withheld(fleet: Fleet) -> None:
    (host,) = fleet.add(1)
    rollout = fleet.start()
    fleet.look()
    fleet.act(rollout, "pause")
    assert host.beat() is None
    fleet.act(rollout, "resume")
    order = host.beat()
    assert order is not None
    assert order.id == f"{rollout}.1"


def test_rollouts_for_the_same_agents_exclude_each_other(fleet: Fleet) -> None:
    fleet.add(1, role="coder", labels={"zone": "a"})
    fleet.add(1, role="tester", labels={"zone": "a"})
    first = fleet.start(select=["role=coder"])
    assert refused(lambda: fleet.start(select=["label.zone=a"])) == "ROLLOUT_OVERLAPS"
    assert refused(fleet.start) == "ROLLOUT_OVERLAPS"
    second = fleet.start(select=["role=tester"])
    assert refused(lambda: fleet.start(select=["role=writer"])) == "ROLLOUT_EMPTY"
    fleet.turns(10)
    assert (fleet.state(first), fleet.state(second)) == ("completed", "completed")
    third = fleet.start(version="1.2.0")
    assert refused(lambda: fleet.act(first, "abort")) == "STATE_CONFLICT"
    fleet.turns(30)
    assert fleet.state(third) == "completed"
    assert {host.version for host in fleet.hosts} == {"1.2.0"}


def test_what_an_operator_may_not_ask_for(fleet: Fleet) -> None:
    (host,) = fleet.add(1)
    assert refused(lambda: fleet.start(version="newest")) == "NAME_INVALID"
    assert refused(lambda: fleet.start(window="at night")) == "INPUT_INVALID"
    assert refused(lambda: fleet.start(select=["hostname=a"])) == "INPUT_INVALID"
    assert refused(lambda: fleet.start(canary=0)) == "INPUT_INVALID"
    assert refused(lambda: fleet.start(skip=["agt_none"])) == "NOT_FOUND"
    assert refused(lambda: fleet.start(version="0.9.0")) == "ROLLOUT_EMPTY"
    fleet.control.plane.published = frozenset({"1.2.0"})
    assert refused(fleet.start) == "RELEASE_UNKNOWN"
    assert refused(lambda: host.call("POST", "/v1/rollouts", {"version": NEW})) == "AUTH_REQUIRED"


def test_pins_skips_and_windows_are_kept(fleet: Fleet) -> None:
    pinned, by_host, skipped, later, closed, other = fleet.add(6)
    by_host.pin, closed.window = OLD, "{:02}:00-{:02}:00".format(*[(hour_now(fleet) + n) % 24 for n in (2, 3)])
    path = f"/v1/agents/{pinned.activated.agent_id}"
    assert fleet.operator.call("POST", f"{path}/pin", {"version": OLD})["pinned"] == OLD
    for host in fleet.hosts:
        host.beat()
    rollout = fleet.start(batch_percent=100, soak_seconds=0, skip=[skipped.activated.agent_id])
    shown = fleet.act(rollout, "skip", agent=later.activated.agent_id)
    reasons = {one["id"]: one["reason"] for one in shown["agents"]}
    assert reasons[pinned.activated.agent_id] == f"an operator pins it to {OLD}"
    assert reasons[by_host.activated.agent_id] == f"its host pins it to {OLD}"
    assert reasons[later.activated.agent_id] == "skipped: by operator:admin"
    assert reasons[closed.activated.agent_id].startswith("outside the window of its host")
    fleet.turns(10)
    assert fleet.state(rollout) == "running", "it waits for the window"
    assert [host for host in fleet.hosts if host.version == NEW] == [other]
    closed.window = ""
    fleet.turns(10)
    assert fleet.state(rollout) == "completed"
    fleet.operator.call("POST", f"{path}/pin", {})
    fleet.turns(30)
    assert pinned.version == NEW
    assert {host.version for host in (by_host, skipped, later)} == {OLD}


def hour_now(fleet: Fleet) -> int:
    return int(fleet.control.plane.clock.wall_ms() // 3_600_000 % 24)


def test_offline_agents_and_new_ones_get_it_later(fleet: Fleet) -> None:
    away, *_ = fleet.add(3)
    fleet.turns(40, away=[away])
    rollout = fleet.start(soak_seconds=0, watch_seconds=0)
    fleet.turns(15, away=[away])
    assert (fleet.state(rollout), fleet.updated()) == ("completed", 2)
    fleet.add(1)
    fleet.turns(20)
    assert (fleet.state(rollout), fleet.updated()) == ("completed", 4)


def test_agents_that_run_something_newer_take_no_part(fleet: Fleet) -> None:
    newer, _ = fleet.add(2)
    newer.version = "2.0.0"
    newer.beat()
    rollout = fleet.start()
    assert sum(fleet.show(rollout)["rollout"]["agents"].values()) == 1
    fleet.turns(12)
    assert newer.version == "2.0.0"


def test_following_returns_with_the_next_change(fleet: Fleet) -> None:
    fleet.add(2)
    rollout = fleet.start()
    revision = fleet.show(rollout)["revision"]
    answers: list[Any] = []
    client = simulated.Operator(fleet.control.url, fleet.control.token)
    path = f"/v1/rollouts/{rollout}?revision={revision}&wait=30"
    thread = threading.Thread(target=lambda: answers.append(client.call("GET", path)))
    thread.start()
    fleet.act(rollout, "pause")
    thread.join(deadlines.HANG)
    assert answers[0]["rollout"]["state"] == "paused"
    assert answers[0]["revision"] > revision


def test_agents_show_how_far_behind_they_are(fleet: Fleet) -> None:
    behind, current = fleet.add(2)
    current.version = NEW
    current.beat()
    fleet.control.plane.offers = {("stable", "amd64"): (NEW, "Faster")}
    views = {one["id"]: one for one in fleet.operator.call("GET", "/v1/agents")["agents"]}
    shown = [views[host.activated.agent_id] for host in (behind, current)]
    assert [(one["version"], one["channel"], one["newest"], one["behind"]) for one in shown] == [
        (OLD, "stable", NEW, True), (NEW, "stable", NEW, False),
    ]  # fmt: skip
    fleet.control.plane.offers = {}
    assert fleet.operator.call("GET", f"/v1/agents/{behind.activated.agent_id}")["behind"] is (
        agentina.__version__ > OLD
    )


def test_orders_survive_a_restart_with_their_ids(tmp_path: Path) -> None:
    with conftest.ControlPlane(tmp_path / "data", **UNHURRIED) as control:
        fleet = Fleet(control)
        (host,) = fleet.add(1)
        rollout = fleet.start()
        fleet.look()
        before = host.beat()
        token, port = control.token, control.url.rpartition(":")[2]
    with conftest.ControlPlane(tmp_path / "data", listen=f"127.0.0.1:{port}", **UNHURRIED) as control:
        control.token, control.operator = token, simulated.Operator(control.url, token)
        host.close()
        host.open(version=OLD)
        assert host.beat() == before
        assert before == wire.UpdateOrder(id=f"{rollout}.1", action="upgrade", version=NEW)


def test_an_abort_that_is_cut_off_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision is durable before anybody is told; whoever was not told is told by the next process, unasked."""
    monkeypatch.setattr(rollout_members, "SLICE", 2)
    told: list[int] = []
    save_members = rollouts.save_members

    def cut_off(tx: Any, rollout: int, changed: Any) -> None:
        members = list(changed)
        told.append(len(members))
        if len(told) > 2:
            raise RuntimeError("killed")
        save_members(tx, rollout, members)

    with conftest.ControlPlane(tmp_path / "data", **UNHURRIED) as control:
        fleet = Fleet(control)
        hosts = fleet.add(7)
        rollout = fleet.start(soak_seconds=0, batch_percent=100, watch_seconds=3600)
        fleet.turns(8)
        assert fleet.updated() == 7
        with monkeypatch.context() as patch:
            patch.setattr(rollouts, "save_members", cut_off)
            assert refused(lambda: fleet.act(rollout, "abort")) == "INTERNAL"
        assert told == [2, 2, 2], "in slices"
        shown = fleet.show(rollout)["rollout"]
        assert (shown["state"], shown["agents"]) == ("rolling-back", {"rolling-back": 4, "updated": 3})
        token, port = control.token, control.url.rpartition(":")[2]
    with conftest.ControlPlane(tmp_path / "data", listen=f"127.0.0.1:{port}", **UNHURRIED) as control:
        control.token, control.operator = token, simulated.Operator(control.url, token)
        revision, shown = 0, {}
        while shown.get("agents") != {"rolling-back": 7}:
            answer = control.operator.call("GET", f"/v1/rollouts/{rollout}?revision={revision}&wait=10")
            revision, shown = answer["revision"], answer["rollout"]
        for host in hosts:
            host.close()
            host.authenticate(now_ms=control.clock.wall_ms())
            host.open(version=NEW)
            order = host.beat()
            assert order is not None
            assert (order.id, order.action) == (f"{rollout}.1.back", "rollback")


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_commands_tell_what_is_going_on(fleet: Fleet, command: conftest.CommandLine) -> None:
    fleet.add(3)
    code, out, _ = command(
        "rollout", "start", NEW, "--soak", "20s", "--batch", "50%", "--watch", "5s", "--select", "organization=default"
    )
    rollout = out.strip()
    assert code == 0
    fleet.turns(4)
    code, out, _ = command("rollout", "status")
    assert code == 0
    assert "1 canary for 20s, then 50 % each for 5.0s" in out
    assert "1 updated, 2 pending" in out or "2 pending, 1 updated" in out
    assert "canary, watching" in out
    command("rollout", "pause", rollout, "--reason", "lunch")
    assert "lunch" in command("rollout", "list")[1]
    command("rollout", "resume", rollout)
    fleet.turns(20)
    code, out, err = command("rollout", "status", rollout, "--follow")
    assert (code, out) == (0, f"{rollout} completed: 3 updated\n")
    assert "paused by operator:admin: lunch" in err
    assert command("rollout", "abort", rollout)[1] == f"{rollout} is rolling-back: 3 rolling-back.\n"
    fleet.turns(3)
    assert command("rollout", "status", rollout, "--follow")[0] == 1
    assert command("rollout", "status", "roll_none")[0] == errors.Exit.NOT_FOUND


def test_pins_and_skew_by_command(fleet: Fleet, command: conftest.CommandLine) -> None:
    (host,) = fleet.add(1)
    fleet.control.plane.offers = {("stable", "amd64"): (NEW, "Faster")}
    name = host.activated.agent_id
    assert "pinned to 1.0.0" in command("agent", "pin", name, OLD)[1]
    _, out, err = command("agent", "list")
    assert f"{OLD}*" in out
    assert "stable" in out
    assert "1 of 1 agent could run a newer version" in err
    host.window = "02:00-04:00"
    host.beat()
    shown = command("agent", "show", name)[1]
    assert f"stable, newest {NEW}" in shown
    assert "02:00-04:00" in shown
    rollout = command("rollout", "start", NEW)[1].strip()
    assert f"an operator pins it to {OLD}" in command("rollout", "status", rollout)[1]
    assert "not pinned" in command("agent", "unpin", name)[1]
    assert "left out" in command("rollout", "skip", rollout, name)[1]

from __future__ import annotations

import collections
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentina.control.rollouts import figures, model, rules
from agentina.protocol import wire
from tests.fakes import rolling_fleet
from tests.fakes.rolling_fleet import NEW, OLD, Fleet, Host

QUICK = {"soak_seconds": 60.0, "watch_seconds": 30.0, "patience_seconds": 120.0}


def plan(**changes: Any) -> model.Plan:
    return model.Plan(version=NEW, **{**QUICK, **changes})


def hosts(count: int, **changes: Any) -> list[Host]:
    return [Host(number, f"host-{number}", **changes) for number in range(1, count + 1)]


def test_a_good_release_goes_by_stages_to_everybody() -> None:
    fleet = Fleet(hosts(20), plan(canary=2))
    sizes: list[int] = []
    for _ in range(80):
        fleet.turn()
        if not sizes or len(fleet.running(NEW)) != sizes[-1]:
            sizes.append(len(fleet.running(NEW)))
    assert sizes == [0, 2, 7, 12, 17, 20]
    assert fleet.state() is model.State.COMPLETED
    assert all(host.installs == 1 for host in fleet.hosts.values())


def test_the_canary_is_watched_for_its_time() -> None:
    fleet = Fleet(hosts(4), plan(soak_seconds=600.0))
    fleet.turns(30)
    assert len(fleet.running(NEW)) == 1
    fleet.turns(40)
    assert len(fleet.running(NEW)) > 1


def test_time_in_which_nobody_looked_is_no_watch() -> None:
    fleet = Fleet(hosts(4), plan(soak_seconds=600.0))
    fleet.turns(5)
    fleet.now_ms += 86_400_000
    fleet.heartbeats()
    fleet.apply(fleet.decide(0.0))
    assert fleet.rollout.stage == 1
    assert fleet.rollout.watched_seconds < 100


@pytest.mark.parametrize(
    ("behaviour", "gate"), [("bad", "rollbacks"), ("late", "rollbacks"), ("dead", "heartbeats")]
)  # fmt: skip
def test_a_bad_release_reaches_the_canary_only(behaviour: str, gate: str) -> None:
    fleet = Fleet(hosts(10, behaviour=behaviour), plan())
    fleet.turns(60)
    assert (fleet.rollout.state, fleet.rollout.gate) == (model.State.ROLLED_BACK, gate)
    assert sum(bool(host.acted) for host in fleet.hosts.values()) == 1
    assert all(host.version == OLD for host in fleet.hosts.values() if not host.is_dead)
    assert fleet.rollout.reason


def test_few_failures_in_a_batch_are_tolerated_and_more_are_not() -> None:
    def run(bad: int) -> Fleet:
        fleet = Fleet(hosts(100), plan(batch_percent=50.0, tolerance_percent=5.0))
        fleet.turns(8)
        for host in [host for host in fleet.hosts.values() if not host.acted][:bad]:
            host.behaviour = "bad"
        fleet.turns(60)
        return fleet

    assert run(2).rollout.state is model.State.COMPLETED
    assert run(60).rollout.state is model.State.ROLLED_BACK


def test_a_network_that_fails_for_all_is_not_the_release() -> None:
    fleet = Fleet(hosts(10), plan())
    fleet.turns(4)
    for host in fleet.hosts.values():
        host.is_online = False
    fleet.turns(10)
    assert fleet.state() is model.State.RUNNING
    for host in fleet.hosts.values():
        host.is_online = True
    fleet.turns(60)
    assert fleet.state() is model.State.COMPLETED


def test_offline_hosts_do_not_block_and_get_it_when_they_are_back() -> None:
    fleet = Fleet(hosts(8), plan())
    away = [fleet.hosts[number] for number in (3, 4, 5)]
    for host in away:
        host.is_online = False
    fleet.turns(60)
    assert fleet.state() is model.State.COMPLETED
    assert len(fleet.running(NEW)) == 5
    for host in away:
        host.is_online = True
    fleet.turns(2)
    assert fleet.state() is model.State.RUNNING
    assert len(fleet.standing(model.Standing.ORDERED) | fleet.running(NEW)) == 7, "one batch of two, no more"
    fleet.turns(40)
    assert fleet.state() is model.State.COMPLETED
    assert len(fleet.running(NEW)) == 8


def test_a_rollout_that_found_everybody_up_to_date_begins_with_a_canary() -> None:
    fleet = Fleet(hosts(8), plan())
    for host in fleet.hosts.values():
        host.version = NEW
    fleet.turns(3)
    assert fleet.state() is model.State.COMPLETED
    for host in fleet.hosts.values():
        host.version = OLD
    fleet.turns(3)
    assert len(fleet.running(NEW)) == 1
    assert fleet.rollout.stage == 1


def test_a_host_that_does_not_obey_holds_up_nobody_else() -> None:
    fleet = Fleet(hosts(9), plan(batch_percent=50.0))
    fleet.turns(2)
    deaf = next(host for host in fleet.hosts.values() if not host.acted)
    deaf.behaviour = "deaf"
    fleet.turns(100)
    assert fleet.running(OLD) == {deaf.number}
    assert fleet.state() is model.State.COMPLETED


def test_a_batch_of_hosts_that_do_not_obey_is_passed_over() -> None:
    fleet = Fleet(hosts(8), plan())
    fleet.turns(2)
    deaf = [host for host in fleet.hosts.values() if not host.acted][:3]
    for host in deaf:
        host.behaviour = "deaf"
    fleet.turns(150)
    assert fleet.running(OLD) == {host.number for host in deaf}
    assert fleet.state() is model.State.COMPLETED


def test_a_canary_that_says_it_leaves_is_replaced() -> None:
    fleet = Fleet(hosts(4), plan())
    fleet.turns(3)
    (canary,) = (fleet.hosts[number] for number in fleet.running(NEW))
    canary.is_online, canary.is_leaving = False, True
    fleet.turns(60)
    assert fleet.state() is model.State.COMPLETED
    assert len(fleet.running(NEW)) == 4


@pytest.mark.parametrize("behaviour", ["inconclusive", "refused"])
def test_inconclusive_is_tried_again_with_another_order(behaviour: str) -> None:
    fleet = Fleet(hosts(1, behaviour=behaviour), plan())
    fleet.turns(10)
    assert fleet.state() is model.State.RUNNING
    assert fleet.running(NEW) == set()
    fleet.turns(60)
    assert fleet.hosts[1].acted == ["roll_1.1", "roll_1.2"]
    assert fleet.state() is model.State.COMPLETED


@pytest.mark.parametrize("reason", ["RELEASE_SKIPPED", "UPDATER_MISSING"])
def test_what_a_host_refuses_for_good_is_not_asked_for_again(reason: str) -> None:
    fleet = Fleet(hosts(1), plan())
    fleet.turn()
    fleet.hosts[1].acted.append("roll_1.1")
    fleet.hosts[1].report = wire.UpdateReport(id="roll_1.1", version=NEW, state="refused", reason=reason)
    fleet.turns(500)
    assert fleet.hosts[1].acted == ["roll_1.1"]
    assert fleet.members[1].skipped


def test_an_operator_who_went_back_is_not_overruled() -> None:
    fleet = Fleet(hosts(1), plan())
    fleet.turn()
    changes = {"state": "rolled-back", "verdict": "inconclusive", "reason": "operator"}
    fleet.hosts[1].acted.append("roll_1.1")
    fleet.hosts[1].report = msgspec.convert({"id": "roll_1.1", "version": NEW, **changes}, wire.UpdateReport)
    fleet.turns(500)
    assert fleet.hosts[1].acted == ["roll_1.1"]


def test_an_agent_that_went_further_by_hand_has_no_part_any_more() -> None:
    fleet = Fleet(hosts(3), plan())
    fleet.turns(3)
    (canary,) = (fleet.hosts[number] for number in fleet.running(NEW))
    canary.version = "2.0.0"
    fleet.turns(60)
    assert fleet.rollout.gate == ""
    assert fleet.running("2.0.0") == {canary.number}
    assert len(fleet.running(NEW)) == 2
    assert fleet.state() is model.State.COMPLETED


def test_a_withdrawn_release_is_taken_back_and_not_given_to_anybody_else() -> None:
    fleet = Fleet(hosts(10), plan())
    fleet.turns(13)
    assert fleet.state() is model.State.RUNNING
    assert len(fleet.running(NEW)) > 1
    decision = rules.decide(
        fleet.rollout, fleet.members.values(), fleet.facts(), now_ms=fleet.now_ms, elapsed=0, is_withdrawn=True
    )
    fleet.apply(decision)
    fleet.turns(5)
    assert (fleet.rollout.state, fleet.rollout.gate) == (model.State.ROLLED_BACK, "withdrawn")
    assert fleet.running(NEW) == set()


def test_pins_are_kept() -> None:
    fleet = Fleet(hosts(4), plan())
    fleet.hosts[1].pinned, fleet.hosts[2].pinned = OLD, NEW
    fleet.turns(60)
    assert fleet.running(OLD) == {1}
    assert fleet.state() is model.State.COMPLETED


@pytest.mark.parametrize(
    ("operators", "hosts_own", "at"),
    [
        ("02:00-06:00", "", 2),
        ("", "03:00-05:00", 3),
        ("02:00-06:00", "03:00-09:00", 3),
        ("03:00-09:00", "02:00-06:00", 3),
    ],
)
def test_the_stricter_window_wins(operators: str, hosts_own: str, at: int) -> None:
    fleet = Fleet(hosts(1, window=hosts_own), plan(window=operators))
    midnight = fleet.now_ms - fleet.now_ms % 86_400_000
    ordered = []
    for hour in range(24):
        fleet.now_ms = fleet.hosts[1].heard_ms = midnight + 3_600_000 * hour
        fleet.apply(fleet.decide())
        if fleet.standing(model.Standing.ORDERED):
            ordered.append(hour)
    assert ordered[0] == at


def test_a_window_that_nobody_understands_is_closed() -> None:
    fleet = Fleet(hosts(1, window="whenever"), plan())
    fleet.turns(5)
    assert not fleet.hosts[1].acted


def test_paused_orders_nothing_and_still_halts() -> None:
    fleet = Fleet(hosts(10), plan())
    fleet.turns(4)
    fleet.rollout = msgspec.structs.replace(fleet.rollout, state=model.State.PAUSED)
    fleet.turns(50)
    assert len(fleet.running(NEW)) == 1
    canary = fleet.hosts[next(iter(fleet.running(NEW)))]
    canary.behaviour = "late"
    fleet.turns(3)
    assert fleet.state() is model.State.ROLLED_BACK


def test_abort_takes_everybody_back_also_those_who_were_away() -> None:
    fleet = Fleet(hosts(10), plan())
    fleet.turns(25)
    changed = fleet.running(NEW)
    assert len(changed) > 3
    away = fleet.hosts[next(iter(changed))]
    away.is_online = False
    fleet.abort()
    fleet.turns(5)
    assert fleet.state() is model.State.ROLLED_BACK
    assert fleet.running(NEW) == {away.number}
    away.is_online = True
    fleet.turns(3)
    assert fleet.running(NEW) == set()
    assert not fleet.standing(model.Standing.RETURNING)


@pytest.mark.parametrize("told", [0, 1, 4])
def test_an_abort_that_is_cut_off_goes_on(told: int) -> None:
    fleet = Fleet(hosts(10, behaviour="slow"), plan(canary=6))
    fleet.turns(3)
    fleet.hosts[1].behaviour = "late"
    fleet.abort(told=told)
    assert len(fleet.standing(model.Standing.RETURNING)) == told
    orders = [model.order(fleet.rollout, member) for member in fleet.members.values()]
    assert {order.action for order in orders if order is not None} <= {"rollback"}
    assert fleet.decide().rollout.state is model.State.ROLLING_BACK, "not over while somebody was not told"
    fleet.turns(6)
    assert fleet.state() is model.State.ROLLED_BACK
    assert fleet.running(NEW) == set()


def test_instances_of_one_host_are_not_changed_together() -> None:
    fleet = Fleet([Host(number, f"host-{number % 3}") for number in range(1, 13)], plan(canary=3, batch_percent=50.0))
    fleet.turns(2)
    assert sorted(fleet.hosts[number].machine for number in fleet.running(NEW)) == ["host-0", "host-1", "host-2"]
    fleet.turns(8)
    by_host = collections.Counter(fleet.hosts[number].machine for number in fleet.running(NEW))
    assert max(by_host.values()) == 3, "of four instances at most half in one stage"
    fleet.turns(60)
    assert fleet.state() is model.State.COMPLETED


def test_a_single_host_is_not_changed_at_once() -> None:
    fleet = Fleet([Host(number, "host") for number in range(1, 6)], plan(canary=3, batch_percent=100.0))
    sizes = []
    for _ in range(60):
        fleet.turn()
        sizes.append(len(fleet.running(NEW)))
    assert sorted(set(sizes)) == [0, 1, 3, 5]


def test_an_update_under_way_is_called_back() -> None:
    fleet = Fleet(hosts(1, behaviour="slow"), plan())
    fleet.turns(2)
    assert fleet.standing(model.Standing.ORDERED)
    fleet.abort()
    fleet.turns(10)
    assert fleet.hosts[1].acted == ["roll_1.1", "roll_1.1.back"]
    assert fleet.running(NEW) == set()


def test_an_order_that_was_taken_and_not_told_yet_is_called_back() -> None:
    fleet = Fleet(hosts(1, behaviour="lazy"), plan())
    fleet.turn()
    fleet.heartbeats()
    assert fleet.hosts[1].wish is not None
    fleet.hosts[1].unsaid = 5
    fleet.abort()
    fleet.turns(10)
    assert fleet.hosts[1].acted == ["roll_1.1", "roll_1.2.back"]
    assert fleet.running(NEW) == set()
    assert fleet.state() is model.State.ROLLED_BACK


def test_zones_take_turns() -> None:
    members = [Host(number, f"host-{number}", zone="abc"[number % 3]) for number in range(1, 31)]
    fleet = Fleet(members, plan(canary=3, batch_percent=20.0))
    fleet.turns(2)
    assert {fleet.hosts[number].zone for number in fleet.running(NEW)} == {"a", "b", "c"}
    fleet.turns(9)
    assert collections.Counter(fleet.hosts[number].zone for number in fleet.running(NEW)) == {"a": 3, "b": 3, "c": 3}


# --- work ------------------------------------------------------------------------------------------------------------


def working_fleet(count: int = 20, **changes: Any) -> Fleet:
    members = hosts(count)
    for host in members:
        host.work(200, 60.0, failed=2)
        host.past = figures.Sample(figures=host.totals, agent_seconds=6000)
    return Fleet(members, plan(**{"canary": 2, "soak_seconds": 3600.0, **changes}))


def work_on(fleet: Fleet, *, turns: int = 100, seconds: float = 60.0, failed: int = 0, count: int = 1) -> None:
    """Every host finishes a task a turn, except that those with the new release do as told."""
    for _ in range(turns):
        for host in fleet.hosts.values():
            if host.version == NEW:
                host.work(count, seconds, failed=failed)
            else:
                host.work(1, 60.0)
        fleet.turn(30.0)


def test_work_as_before_passes() -> None:
    fleet = working_fleet()
    work_on(fleet, turns=700)
    assert fleet.state() is model.State.COMPLETED


@pytest.mark.parametrize(
    ("change", "gate"), [({"seconds": 90.0}, "duration"), ({"failed": 1}, "failures"), ({"count": 0}, "throughput")]
)
def test_work_that_suffers_halts_the_rollout_at_the_canaries(change: dict[str, Any], gate: str) -> None:
    fleet = working_fleet()
    work_on(fleet, **change)
    assert (fleet.rollout.state, fleet.rollout.gate) == (model.State.ROLLED_BACK, gate)
    assert sum(host.installs for host in fleet.hosts.values()) == 2
    assert fleet.running(NEW) == set()


def test_a_hard_night_for_all_is_not_the_release() -> None:
    fleet = working_fleet()
    fleet.turns(2)
    for _ in range(100):
        for host in fleet.hosts.values():
            host.work(1, 200.0, failed=1)
        fleet.turn(30.0)
    assert fleet.state() is model.State.RUNNING


def test_a_quiet_night_is_not_the_release() -> None:
    """Also at the end, when nobody is left to compare with."""
    fleet = working_fleet(4, batch_percent=100.0, watch_seconds=9000.0)
    work_on(fleet, turns=130)
    assert len(fleet.running(NEW)) == 4
    fleet.turns(250, 30.0)
    assert fleet.state() is model.State.RUNNING
    fleet.turns(100, 30.0)
    assert fleet.state() is model.State.COMPLETED


def test_a_slow_host_stays_a_slow_host() -> None:
    fleet = working_fleet()
    for host in fleet.hosts.values():
        host.totals = figures.Figures()
        host.work(200, 300.0)
        host.past = figures.Sample(figures=host.totals, agent_seconds=86_400)
    work_on(fleet, turns=100, seconds=300.0)
    assert fleet.state() is model.State.RUNNING


# --- random histories ------------------------------------------------------------------------------------------------

HOST = st.tuples(
    st.sampled_from(rolling_fleet.BEHAVIOURS + ("good",) * 20),
    st.integers(0, 5), st.sampled_from(["", "a", "b"]), st.booleans(), st.sampled_from(["", "", "", OLD]),
)  # fmt: skip
EVENT = st.one_of(
    st.sampled_from(["turn"] * 8 + ["crash", "pause", "resume", "abort", "abort-cut-off"]),
    st.tuples(st.just("toggle"), st.integers(0, 30)),
)


class Watcher:
    """Checks, after each step, what must hold always."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.watched: dict[int, float] = collections.defaultdict(float)
        self.is_over = False

    def check(self) -> None:
        fleet, rollout = self.fleet, self.fleet.rollout
        size = len(fleet.members)
        by_stage = collections.Counter(member.stage for member in fleet.members.values() if member.stage)
        for stage, count in by_stage.items():
            assert count <= rollout.plan.size(stage, size)
        assert sum(by_stage.values()) <= rollout.plan.canary + (rollout.stage - 1) * rollout.plan.size(2, size)
        orders = [model.order(rollout, member) for member in fleet.members.values()]
        upgrades = [order for order in orders if order is not None and order.action == "upgrade"]
        self.is_over |= rollout.state in {model.State.ROLLING_BACK, model.State.ROLLED_BACK}
        assert not (upgrades and rollout.state is model.State.PAUSED)
        if self.is_over:
            assert rollout.state in {model.State.ROLLING_BACK, model.State.ROLLED_BACK}
            assert not upgrades
        for host in fleet.hosts.values():
            assert len(host.acted) == len(set(host.acted))
            assert host.installs <= fleet.members[host.number].attempt
            assert not (host.pinned and host.installs)
        again = fleet.decide(0.0)
        assert not again.members, "the same facts lead to the same decision"
        assert again.rollout == rollout


def run(fleet: Fleet, events: list[Any], watcher: Watcher) -> None:
    for event in events:
        state = fleet.rollout.state
        if event == "turn":
            fleet.turn()
            watcher.check()
        elif event == "crash":
            fleet.heartbeats()
            fleet.decide(10.0)  # made, and lost before it was stored
        elif event == "pause" and state is model.State.RUNNING:
            fleet.rollout = msgspec.structs.replace(fleet.rollout, state=model.State.PAUSED)
        elif event == "resume" and state is model.State.PAUSED:
            fleet.rollout = msgspec.structs.replace(fleet.rollout, state=model.State.RUNNING)
        elif event == "abort" and state not in {model.State.ROLLING_BACK, model.State.ROLLED_BACK}:
            fleet.abort()
        elif event == "abort-cut-off" and state not in {model.State.ROLLING_BACK, model.State.ROLLED_BACK}:
            fleet.abort(told=1)
        elif isinstance(event, tuple):
            host = fleet.hosts[1 + event[1] % len(fleet.hosts)]
            host.is_online = not host.is_online


@settings(max_examples=150, deadline=None)
@given(
    st.lists(HOST, min_size=1, max_size=30), st.integers(1, 3), st.sampled_from([10.0, 25.0, 100.0]),
    st.lists(EVENT, max_size=120),
)  # fmt: skip
def test_random_histories_keep_the_promises_and_come_to_an_end(
    made: list[Any], canary: int, percent: float, events: list[Any]
) -> None:
    members = [
        Host(number, f"host-{machine}", zone, behaviour, is_online=is_online, pinned=pinned)
        for number, (behaviour, machine, zone, is_online, pinned) in enumerate(made, 1)
    ]
    fleet = Fleet(members, plan(canary=canary, batch_percent=percent))
    watcher = Watcher(fleet)
    run(fleet, events, watcher)
    for host in fleet.hosts.values():
        host.is_online = True
        # What is wrong with them is over, but for those that died of the release.
        host.behaviour = "good" if host.behaviour == "deaf" else host.behaviour
    if fleet.rollout.state is model.State.PAUSED:
        run(fleet, ["resume"], watcher)
    for _ in range(30):
        run(fleet, ["turn"] * 5, watcher)
        fleet.now_ms += 3_600_000
    there = [host for host in fleet.hosts.values() if not host.is_dead and not host.pinned]
    if watcher.is_over:
        assert fleet.state() is model.State.ROLLED_BACK
        assert all(host.version == OLD for host in there)
    elif there:
        assert fleet.state() is model.State.COMPLETED
        failed = fleet.standing(model.Standing.FAILED)
        assert all(host.version == NEW for host in there if host.number not in failed)

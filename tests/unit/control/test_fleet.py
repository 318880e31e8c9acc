from __future__ import annotations

from typing import Any

import pytest

from agentina.control import fleet
from agentina.protocol import jobs, signing
from agentina.protocol.states import State


def agent(number: int, **changes: object) -> fleet.Agent:
    made = fleet.Agent(number, f"agent-{number}", signing.SigningKey.generate().public)
    for name, value in {"organization_id": 1, "runners": ["command"], **changes}.items():
        setattr(made, name, value)
    return made


def job_class(number: int, **changes: Any) -> fleet.JobClass:
    values: dict[str, Any] = {"organization_id": 1, "role": "", "labels": {}, "runner": "command", **changes}
    return fleet.JobClass(id=number, **values)


def held(owner: fleet.Agent, task_id: str, deadline: float) -> fleet.Held:
    return fleet.Held(
        agent=owner, task=1, task_id=task_id, job=1, job_id=task_id.partition(".")[0], memory_bytes=0,
        state=State.RUNNING, deadline=deadline,
    )  # fmt: skip


def make(*agents: fleet.Agent) -> fleet.Fleet:
    made = fleet.Fleet(lease_seconds=180, heartbeat_seconds=60)
    for each in agents:
        made.add(each)
    return made


def test_classes_are_served_by_agents_that_match_in_everything() -> None:
    matching = agent(1, role="coder", labels={"gpu": "a100", "zone": "b"})
    others = [
        agent(2, role="tester", labels={"gpu": "a100"}),
        agent(3, role="coder", labels={"gpu": "none"}),
        agent(4, role="coder", labels={"gpu": "a100"}, organization_id=2),
        agent(5, role="coder", labels={"gpu": "a100"}, runners=["codex"]),
    ]
    everything = make(matching, *others)
    everything.add_class(job_class(7, role="coder", labels={"gpu": "a100"}))
    assert [each.id for each in everything.agents.values() if 7 in each.classes] == [1]


@pytest.mark.parametrize(("gateway", "served"), [("", {1, 2, 3}), ("none", {1, 2}), ("unusable", {1})])
def test_classes_are_served_by_agents_with_the_gateway_for_them(gateway: jobs.GatewayState, served: set[int]) -> None:
    """Also when that changes while the agent's poll waits."""
    waiting = agent(1, poll_memory=1)
    everything = make(waiting)
    for number, need in enumerate(("", "hosts", "budget"), 1):
        everything.add_class(job_class(number, gateway=need))
    for state in ("unusable", gateway):
        everything.note_gateway(waiting, state)
    assert waiting.classes == served
    for number in (1, 2, 3):
        everything.wait_for_work(waiting)
        assert (everything.take_waiting(number, 1) is waiting) == (number in served)


def test_an_agent_that_joins_later_serves_known_classes() -> None:
    everything = make()
    everything.add_class(job_class(7))
    late = agent(1)
    everything.add(late)
    assert late.classes == {7}


def test_the_longest_waiting_agent_with_room_is_woken_and_only_it() -> None:
    small, first, second = agent(1, poll_memory=10), agent(2, poll_memory=100), agent(3, poll_memory=100)
    everything = make(small, first, second)
    everything.add_class(job_class(7))
    for each in (small, first, second):
        everything.wait_for_work(each)
    assert everything.announce(7, 50)
    assert [everything.leave_queue(each) for each in (small, first, second)] == [True, False, True]
    assert not everything.announce(7, 50)


def test_leases_run_out_in_their_own_time() -> None:
    owner = agent(1)
    everything = make(owner)
    for task_id, deadline in (("job_a.1", 10.0), ("job_b.1", 20.0)):
        everything.hold(held(owner, task_id, deadline))
    assert everything.next_deadline() == 10
    assert [each.task_id for each in everything.expired(15)] == ["job_a.1"]
    everything.release("job_a.1")
    assert set(owner.held) == {"job_b.1"}


def test_a_removed_agent_is_unknown_but_its_leases_go_on() -> None:
    owner = agent(1)
    everything = make(owner)
    everything.hold(held(owner, "job_a.1", 10))
    everything.remember_assertion(owner, b"x", 100)
    everything.remove(owner)
    assert everything.find("agent-1") is None
    assert everything.by_assertion(b"x", 1) is None
    assert everything.next_deadline() == 10


def test_assertions_expire_and_only_two_are_kept_for_an_agent() -> None:
    owner = agent(1)
    everything = make(owner)
    for digest in (b"1", b"2", b"3"):
        everything.remember_assertion(owner, digest, 100)
    assert [everything.by_assertion(digest, 100) for digest in (b"1", b"2", b"3")] == [None, owner, owner]
    assert everything.by_assertion(b"3", 101) is None


def test_an_agent_is_offline_after_three_missed_heartbeats() -> None:
    owner = agent(1)
    everything = make(owner)
    assert not everything.is_online(owner, 1000)
    owner.last_seen = 1000
    assert everything.is_online(owner, 1180)
    assert not everything.is_online(owner, 1181)

from __future__ import annotations

from typing import Any

import pytest

from agentina import errors
from agentina.control.services import duties
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.integration.control import simulated
from tests.integration.control.conftest import CommandLine

PREPARING, RUNNING, SUCCEEDED = State.PREPARING, State.RUNNING, State.SUCCEEDED


def running(agent: simulated.Agent, operator: simulated.Operator, **changes: Any) -> tuple[str, str]:
    """A job whose task runs on the agent."""
    job = operator.submit(**changes)
    (task,) = agent.take()
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running"))
    return job, task


# --- the conclusions of a new session ------------------------------------------------------------------------------


def test_an_assigned_task_that_is_not_listed_never_started(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    agent.take()
    opened = agent.open()
    assert (opened.stop, opened.forget) == ([], [])
    shown = operator.show(job)
    assert (shown["job"]["state"], shown["job"]["reason"]) == ("queued", "returned-unstarted")
    assert shown["job"]["attempts"] == 0
    assert agent.take() == [f"{job}.2"]


def test_a_task_whose_record_is_gone_is_lost_when_it_cannot_run_any_more(
    control: Any, operator: simulated.Operator
) -> None:
    agent = control.agent()
    job, _ = running(agent, operator, retry={"on": []})
    control.step_boot(100)
    agent.open()
    control.step_boot(79)
    agent.heartbeat()
    assert operator.state(job)[0] == "running"
    control.step_boot(2)
    shown = operator.show(job)
    assert (shown["job"]["state"], shown["job"]["reason"]) == ("lost", "record-damaged")
    assert shown["job"]["attempts"] == 1


def test_a_listed_task_goes_on_and_its_lease_is_renewed(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job, task = running(agent, operator)
    accepted_only = operator.submit()
    (second,) = agent.take()
    control.step_boot(170)
    opened = agent.open((task, RUNNING), (second, PREPARING))
    assert (opened.stop, opened.forget) == ([], [])
    control.step_boot(170)
    assert operator.state(job)[0] == "running"
    assert agent.take() == []
    agent.run(second)
    assert operator.state(accepted_only)[0] == "succeeded"


def test_final_and_foreign_tasks_are_stopped_or_forgotten(control: Any, operator: simulated.Operator) -> None:
    agent, other = control.agent(), control.agent()
    _, done = running(agent, operator)
    agent.report(agent.finished(done))
    _, expired = running(agent, operator, retry={"on": []})
    _, foreign = running(other, operator)
    control.step_boot(181)
    unknown = "job_0000000000000000.1"
    opened = agent.open((done, SUCCEEDED), (expired, RUNNING), (foreign, RUNNING), (unknown, SUCCEEDED))
    assert opened.forget == [done, unknown]
    stops = {stop.task_id: stop.reason for stop in opened.stop}
    assert stops == {expired: Reason.LEASE_EXPIRED, foreign: Reason.RECORD_DAMAGED}


def test_a_session_fences_the_ones_before(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job, task = running(agent, operator)
    old = agent.session
    assert agent.open((task, RUNNING)).session == old + 1
    agent.session = old
    for call in (
        agent.poll, agent.heartbeat, lambda: agent.report(agent.finished(task)), lambda: agent.output(task, 0, b"x")
    ):  # fmt: skip
        with pytest.raises(errors.AgentinaError, match="SESSION_SUPERSEDED") as caught:
            call()
        assert caught.value.context == {"session": old, "current": old + 1}
    assert operator.state(job)[0] == "running"


def test_the_stream_goes_on_in_a_new_session(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    _, task = running(agent, operator)
    assert agent.open((task, RUNNING)).applied == 2
    agent.stream = "new"
    assert agent.open((task, RUNNING)).applied == 0


# --- leases ------------------------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_loses_the_task_and_late_reports_change_nothing(
    control: Any, operator: simulated.Operator
) -> None:
    agent, other = control.agent(), control.agent()
    job, task = running(agent, operator, retry={"max_attempts": 2, "backoff": 0})
    control.step_boot(179)
    assert operator.state(job)[0] == "running"
    control.step_boot(2)
    assert operator.state(job) == ("queued", "retry-backoff")
    assert other.take() == [f"{job}.2"]
    answer = agent.report(agent.finished(task))
    assert answer.forget == [task]
    shown = operator.show(job)
    assert shown["job"]["state"] == "assigned"
    assert [view["state"] for view in shown["tasks"]] == ["lost", "assigned"]
    assert shown["tasks"][0]["outcome"]["state"] == "succeeded"
    assert "late report" in shown["events"][-1]["text"]


def test_heartbeats_renew_what_they_list_and_nothing_else(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    kept_job, kept = running(agent, operator)
    dropped_job, _ = running(agent, operator, retry={"on": []})
    control.step_boot(100)
    assert agent.heartbeat((kept, RUNNING)).renewed == [kept]
    control.step_boot(100)
    assert (operator.state(kept_job)[0], operator.state(dropped_job)) == ("running", ("lost", "lease-expired"))


def test_a_heartbeat_that_comes_too_late_renews_nothing(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    _, task = running(agent, operator, retry={"on": []})
    control.clock.boot_offset += 181  # nobody has swept yet
    assert agent.heartbeat((task, RUNNING)).renewed == []
    control.step_boot(0)
    answer = agent.heartbeat((task, RUNNING))
    assert [(stop.task_id, stop.reason) for stop in answer.stop] == [(task, Reason.LEASE_EXPIRED)]


@pytest.mark.parametrize("step_ms", [-86_400_000, 86_400_000])
def test_setting_the_clock_loses_no_lease_and_stretches_none(
    control: Any, operator: simulated.Operator, step_ms: int
) -> None:
    agent = control.agent()
    job, _ = running(agent, operator, retry={"on": []})
    control.clock.wall_offset_ms += step_ms
    control.step_boot(170)
    assert operator.state(job)[0] == "running"
    control.step_boot(11)
    assert operator.state(job) == ("lost", "lease-expired")


def test_a_removed_agents_tasks_are_given_up_only_when_their_leases_end(
    control: Any, operator: simulated.Operator
) -> None:
    agent = control.agent()
    job, _ = running(agent, operator, retry={"on": []})
    operator.call("DELETE", f"/v1/agents/{agent.activated.agent_id}")
    assert operator.state(job)[0] == "running"
    control.step_boot(181)
    assert operator.state(job) == ("lost", "agent-removed")


def test_a_canceled_job_of_a_silent_agent_ends_with_the_lease(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job, _ = running(agent, operator)
    operator.call("POST", f"/v1/jobs/{job}/cancel")
    control.step_boot(181)
    assert operator.state(job) == ("canceled", "canceled-by-operator")


def test_jobs_that_are_taken_and_given_back_in_a_circle_slow_down(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    for number in range(1, 5):
        (task,) = agent.take()
        agent.report(agent.fact(task, "accepted"), agent.fact(task, "returned", detail="no room"))
        assert task == f"{job}.{number}"
    assert agent.take() == []
    assert operator.show(job)["job"]["attempts"] == 0
    control.step_boot(3)
    assert agent.take() == [f"{job}.5"]


def test_what_heartbeats_say_is_shown_and_survives_in_the_database(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    agent.heartbeat()
    (shown,) = operator.call("GET", "/v1/agents")["agents"]
    assert (shown["online"], shown["session"]) == (True, 1)
    control.step_boot(181)
    assert not operator.call("GET", f"/v1/agents/{shown['id']}")["online"]


def test_what_heartbeats_say_moves_nobodys_cursor(control: Any, command: CommandLine) -> None:
    agent = control.agent(version="0\x9b2J")
    agent.open(executor="process\x9b2J", facts={"kernel": "6\x9b2J"}, guarantees={"memory": "held\x9b2J"})
    agent.heartbeat(version="1\x9b2J", draining=True, drain_reason="bye\x9b2J", update_pin="2\x9b2J")
    for words in (("agent", "show", agent.activated.agent_id), ("agent", "list")):
        code, shown, _ = command(*words)
        assert code == 0
        assert "\N{REPLACEMENT CHARACTER}2J" in shown
        assert "\x9b" not in shown


def test_a_drain_by_the_host_is_shown(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    path = f"/v1/agents/{agent.activated.agent_id}"
    for draining, reason in ((True, "draining by its host"), (False, "")):
        agent.call("POST", "/v1/agent/heartbeat", wire.Heartbeat(session=agent.session, draining=draining))
        shown = operator.call("GET", path)
        assert (shown["state"], shown["draining_by_host"], shown["state_reason"]) == ("active", draining, reason)


# --- one identity on two machines -------------------------------------------------------------------------------------


def test_a_boot_that_comes_back_quarantines_until_an_operator_decides(
    control: Any, operator: simulated.Operator
) -> None:
    agent = control.agent()
    job = operator.submit()
    for boot in ("one", "one", "two", "three"):
        assert agent.open(boot_id=boot).directives.quarantine == "", "a daemon, then a host, started again"
    assert "two running machines" in agent.open(boot_id="two").directives.quarantine
    assert agent.take() == []
    name = agent.activated.agent_id
    assert operator.call("GET", f"/v1/agents/{name}")["state"] == "quarantined"
    operator.call("POST", f"/v1/agents/{name}/resume", {})
    assert agent.open(boot_id="three").directives.quarantine == "", "the operator decided"
    assert agent.take() == [f"{job}.1"]


def test_a_state_directory_on_another_machine_quarantines(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    here = wire.Fingerprint(cpu="c", board="b", disk="d", mac="m", hostname="h")
    there = wire.Fingerprint(cpu="c", board="b", disk="e", mac="n", hostname="i")
    assert agent.open(fingerprint=here).directives.quarantine == ""
    assert "disk, mac, hostname" in agent.open(fingerprint=there).directives.quarantine
    assert agent.open(fingerprint=there).directives.quarantine != "", "time does not heal it"
    operator.call("POST", f"/v1/agents/{agent.activated.agent_id}/resume", {})
    assert agent.open(fingerprint=there).directives.quarantine == ""


def test_what_is_heard_while_facts_are_stored_is_stored_the_next_time(
    control: Any, operator: simulated.Operator
) -> None:
    del operator
    agent = control.agent()
    agent.heartbeat()
    inside = control.plane.fleet.find(agent.activated.agent_id)
    inner = control.plane.store.write

    async def write(operation: Any, **more: Any) -> Any:
        result = await inner(operation, **more)
        # As if a heartbeat came, and a task ended, before the commit was heard of.
        inside.is_changed = inside.is_work_counted = True
        return result

    background = duties.Duties(control.plane)
    control.plane.store.write = write
    control.run(background.flush_heartbeats)
    control.plane.store.write = inner
    assert inside.is_changed
    assert inside.is_work_counted
    control.run(background.flush_heartbeats)
    assert not inside.is_changed


def test_facts_that_could_not_be_stored_are_stored_the_next_time(control: Any, operator: simulated.Operator) -> None:
    del operator
    agent = control.agent()
    agent.heartbeat()
    inside = control.plane.fleet.find(agent.activated.agent_id)
    inside.is_work_counted = True
    inner = control.plane.store.write

    async def fail(*_: object, **__: object) -> None:
        raise errors.STORAGE_FULL()  # noqa: RSE102 - calling the entry makes the exception

    control.plane.store.write = fail
    with pytest.raises(errors.AgentinaError, match="STORAGE_FULL"):
        control.run(duties.Duties(control.plane).flush_heartbeats)
    control.plane.store.write = inner
    assert inside.is_changed
    assert inside.is_work_counted

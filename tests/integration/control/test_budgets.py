"""Budgets of organizations, agents and jobs: set by operators, shared out to hosts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.protocol import budgets, wire
from agentina.protocol.states import State
from tests.integration.control import simulated


def ask(agent: simulated.Agent, control: Any, number: int, want: int, **more: Any) -> budgets.Answer:
    """A host wants to be allowed to use so many tokens."""
    day = budgets.day_of(time.time() * 1000 if control is None else control.clock.wall_ms())
    fields = {"day": day, "want": budgets.Units(tokens=want), **more}
    message = budgets.Ask(session=agent.session, number=number, **fields)
    return msgspec.convert(agent.call("POST", "/v1/agent/budgets", message), budgets.Answer)


def put(operator: simulated.Operator, scope: str, name: str, **limits: Any) -> Any:
    return operator.call("PUT", f"/v1/budgets/{scope}/{name}", limits)


def cap(answer: budgets.Answer) -> int | None:
    assert answer.organization is not None
    return answer.organization.cap.tokens


def test_without_a_budget_a_host_may_use_what_it_likes(control: Any) -> None:
    answer = ask(control.agent(), control, 1, 1_000)
    assert (answer.organization, answer.agent, answer.tasks) == (None, None, {})


def test_shares_of_all_hosts_are_never_more_than_the_budget(control: Any) -> None:
    put(control.operator, "organization", "default", tokens=100_000)
    hosts = [control.agent() for _ in range(3)]
    caps = [cap(ask(host, control, 1, 60_000)) for host in hosts]
    assert caps == [65_000, 35_000, 0]
    shown = control.operator.call("GET", "/v1/budgets/organization/default")
    assert (shown["shared"]["tokens"], shown["left"]["tokens"]) == (100_000, 100_000)
    # The first gives back what it does not need, and the third gets it.
    nothing = budgets.Units()
    ask(hosts[0], control, 2, 0, promise=nothing, spent=nothing)
    assert cap(ask(hosts[2], control, 2, 60_000, promise=nothing)) == 56_875


def test_what_a_host_used_is_used_for_all(control: Any) -> None:
    put(control.operator, "organization", "default", tokens=10_000, on_exhausted="park")
    first, second = control.agent(), control.agent()
    used = budgets.Units(tokens=9_500)
    ask(first, control, 1, 9_500)
    ask(first, control, 2, 9_500, promise=used, spent=used)
    answer = ask(second, control, 1, 4_000)
    assert answer.organization is not None
    # A little of it stays with the first, as a cushion.
    assert (answer.organization.cap.tokens, answer.organization.left.tokens) == (438, 500)
    assert answer.organization.on_exhausted == "park"


def test_an_answer_that_was_lost_and_a_question_that_comes_late_hand_out_nothing_twice(control: Any) -> None:
    put(control.operator, "organization", "default", tokens=10_000)
    host, other = control.agent(), control.agent()
    ask(host, control, 1, 5_000)
    ask(host, control, 3, 8_000, promise=budgets.Units(tokens=5_000))
    late = ask(host, control, 2, 0, promise=budgets.Units())
    assert cap(late) == 8_250, "an old word lowers nothing"
    assert cap(ask(other, control, 1, 9_000)) == 1_750


def test_usage_before_a_budget_was_set_counts(control: Any) -> None:
    host, other = control.agent(), control.agent()
    ask(host, control, 1, 0, spent=budgets.Units(tokens=9_000))
    put(control.operator, "organization", "default", tokens=10_000)
    assert cap(ask(other, control, 1, 5_000)) == 1_000


def test_a_lowered_budget_is_told_at_once_and_true_when_the_host_has_promised_it(control: Any) -> None:
    put(control.operator, "organization", "default", tokens=100_000)
    host = control.agent()
    promise = budgets.Units(tokens=cap(ask(host, control, 1, 50_000)) or 0)
    put(control.operator, "organization", "default", tokens=20_000)
    answer = ask(host, control, 2, 50_000, promise=promise, spent=budgets.Units(tokens=5_000))
    assert cap(answer) == 20_000


def test_what_is_added_is_added_for_today(control: Any) -> None:
    operator, host = control.operator, control.agent()
    put(operator, "organization", "default", tokens=10_000)
    shown = operator.call("POST", "/v1/budgets/organization/default/raise", {"tokens": 5_000})
    assert (shown["limit"]["tokens"], shown["extra"]["tokens"]) == (15_000, 5_000)
    assert cap(ask(host, control, 1, 15_000)) == 15_000
    control.clock.wall_offset_ms += 86_400_000
    host.authenticate(now_ms=control.clock.wall_ms())
    operator.close()
    assert cap(ask(host, control, 2, 15_000)) == 10_000, "a new day, a new budget"
    actions = [entry["action"] for entry in operator.call("GET", "/v1/audit")["entries"]]
    assert actions.count("budget.set") == actions.count("budget.raise") == 1


def test_a_host_that_means_another_day_gets_nothing_before_it_knows_better(control: Any) -> None:
    put(control.operator, "organization", "default", tokens=10_000)
    host = control.agent()
    wrong = ask(host, control, 1, 5_000, day="2031-01-01")
    assert wrong.day == budgets.day_of(control.clock.wall_ms())
    assert cap(wrong) == 0
    assert (cap(ask(host, control, 2, 5_000, promise=budgets.Units())) or 0) >= 5_000


def test_an_agent_has_a_budget_of_its_own(control: Any) -> None:
    host, other = control.agent(), control.agent()
    name = host.activated.agent_id
    shown = put(control.operator, "agent", name, cost_nano=5 * budgets.DOLLAR)
    assert (shown["scope"], shown["limit"]) == ("agent", {"cost_nano": 5 * budgets.DOLLAR})
    answer = ask(host, control, 1, 0, spent=budgets.Units(cost_nano=budgets.DOLLAR))
    assert answer.agent == budgets.Whole(limit=budgets.Bounds(cost_nano=5 * budgets.DOLLAR))
    assert ask(other, control, 1, 0).agent is None
    listed = control.operator.call("GET", "/v1/budgets")["budgets"]
    assert [(one["name"], one["used"]) for one in listed] == [(name, {"cost_nano": budgets.DOLLAR})]
    control.operator.call("DELETE", f"/v1/budgets/agent/{name}")
    assert ask(host, control, 2, 0).agent is None


def test_figures_show_what_is_left_and_who_is_held(control: Any) -> None:
    operator, host = control.operator, control.agent()
    put(operator, "organization", "default", tokens=1_000, cost_nano=5 * budgets.DOLLAR)
    operator.submit()
    (task,) = host.take()
    held = wire.Held(task_id=task, state=State.RUNNING, parked="1000 of 1000 tokens are used")
    host.call("POST", "/v1/agent/heartbeat", wire.Heartbeat(session=host.session, tasks=[held]))
    ask(host, control, 1, 0, spent=budgets.Units(tokens=400, cost_nano=budgets.DOLLAR))
    text = operator.raw("GET", "/metrics").read().decode()
    for line in (
        'budget_limit{kind="tokens",name="default",scope="organization"} 1000.0',
        'budget_left{kind="tokens",name="default",scope="organization"} 600.0',
        'budget_left{kind="dollars",name="default",scope="organization"} 4.0',
        'tasks_parked{organization="default"} 1.0',
    ):
        assert line in text
    assert 'kind="tool_calls"' not in text
    operator.call("DELETE", "/v1/budgets/organization/default")
    host.run(task)
    text = operator.raw("GET", "/metrics").read().decode()
    assert "budget_left{" not in text
    assert "tasks_parked{" not in text


def test_a_running_job_s_budget_is_raised_and_its_task_is_told(control: Any) -> None:
    operator, host = control.operator, control.agent()
    job = operator.submit(budget={"cost": 0.1, "tokens": 1000, "on_exhausted": "park"})
    (task,) = host.take()
    host.report(host.fact(task, "accepted"), host.fact(task, "running", pid=1))
    held = wire.Held(task_id=task, state=State.RUNNING, parked="1000 of 1000 tokens are used")
    host.call("POST", "/v1/agent/heartbeat", wire.Heartbeat(session=host.session, tasks=[held]))
    assert operator.show(job)["tasks"][0]["parked"] == "1000 of 1000 tokens are used"
    assert ask(host, control, 1, 0).tasks == {}
    shown = operator.call("POST", f"/v1/budgets/job/{job}/raise", {"cost_nano": 200_000_000, "tokens": 500})
    assert shown["limit"] == {"tokens": 1500, "cost_nano": 300_000_000}
    assert shown["parked"] == ["1000 of 1000 tokens are used"]
    heard_ms = operator.call("GET", f"/v1/agents/{host.activated.agent_id}")["last_heartbeat_ms"]
    put(operator, "organization", "default", tokens=1)
    for scope, name in (("job", job), ("organization", "default"), ("agent", host.activated.agent_id)):
        assert operator.call("GET", f"/v1/budgets/{scope}/{name}")["as_of_ms"] == heard_ms
    assert operator.show(job)["tasks"][0]["as_of_ms"] == heard_ms
    (budget,) = ask(host, control, 2, 0).tasks.values()
    assert (budget.tokens, budget.cost, budget.on_exhausted) == (1500, 0.3, "park")
    assert operator.show(job)["spec"]["budget"]["tokens"] == 1500
    assert "operator:admin changed the budget" in operator.show(job)["events"][-1]["text"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("organization/nobody", {"tokens": 1}, "NOT_FOUND"),
        ("agent/nobody", {"tokens": 1}, "NOT_FOUND"),
        ("moon/default", {"tokens": 1}, "NOT_FOUND"),
        ("organization/default", {"duration": 5.0}, "INPUT_INVALID"),
        ("organization/default", {"tokens": -1}, "INPUT_INVALID"),
        ("job/job_0123456789abcdef", {"tokens": 1}, "JOB_UNKNOWN"),
    ],
)
def test_what_cannot_be_set_is_refused(control: Any, path: str, body: Any, code: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        control.operator.call("PUT", f"/v1/budgets/{path}", body)
    assert caught.value.code == code


def test_a_limit_that_is_not_there_cannot_be_raised(control: Any) -> None:
    put(control.operator, "organization", "default", tokens=1)
    job = control.operator.submit(budget={"tokens": 5})
    for path, body in (("organization/default", {"cost_nano": 5}), (f"job/{job}", {"duration": 5.0})):
        with pytest.raises(errors.AgentinaError) as caught:
            control.operator.call("POST", f"/v1/budgets/{path}/raise", body)
        assert caught.value.code == "INPUT_INVALID"


def test_shares_survive_a_kill_of_the_control_plane(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data") as serving:
        operator = simulated.Operator(serving.url, serving.token)
        put(operator, "organization", "default", tokens=10_000)
        hosts = [simulated.new_agent(serving.url, operator) for _ in range(2)]
        assert cap(ask(hosts[0], None, 1, 9_000)) == 9_125
        serving.keep_address()
        serving.kill()
        for client in (operator, *hosts):
            client.close()
        serving.start()
        hosts[1].open()
        assert cap(ask(hosts[1], None, 1, 5_000)) == 875

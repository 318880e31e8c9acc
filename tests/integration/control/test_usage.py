"""Usage of models: told by heartbeats and at the end of tasks, stored once, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.control.services import usage
from agentina.protocol import budgets, wire
from agentina.protocol.states import Reason, State
from tests.integration.control import simulated

DAY = "2026-11-21"


def row(calls: int = 1, *, model: str = "claude-haiku-4-5", day: str = DAY, **more: Any) -> budgets.ModelUsage:
    figures = {"input": 100 * calls, "cached": 1000 * calls, "output": 10 * calls, "cost_nano": 250_000 * calls}
    return budgets.ModelUsage(model=model, day=day, calls=calls, **{**figures, **more})


def beat(agent: simulated.Agent, task: str, *rows: budgets.ModelUsage) -> None:
    held = wire.Held(task_id=task, state=State.RUNNING, models=list(rows))
    agent.call("POST", "/v1/agent/heartbeat", wire.Heartbeat(session=agent.session, tasks=[held]))


def report(operator: simulated.Operator, by: str, **query: str) -> Any:
    more = "".join(f"&{key}={value}" for key, value in query.items())
    return operator.call("GET", f"/v1/usage?by={by}&since={DAY}&until=2026-11-22{more}")


def test_what_a_task_used_is_counted_once_however_often_it_is_told(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    job = operator.submit()
    (task,) = agent.take()
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=1))
    beat(agent, task, row(2))
    beat(agent, task, row(3))
    control.run(lambda: usage.flush(control.plane))
    beat(agent, task, row(2))  # one that was under way for long
    control.run(lambda: usage.flush(control.plane))
    last = agent.finished(task, models=[row(4), row(1, day="2026-11-22", unpriced=1, cost_nano=0)])
    for _ in range(3):
        agent.report(last)
    (line,) = report(operator, "job")["rows"]
    assert (line["key"], line["name"], line["calls"], line["output"]) == (job, "test", 5, 50)
    assert (line["cost_nano"], line["unpriced"]) == (1_000_000, 1)
    days = [(one["key"], one["calls"]) for one in report(operator, "day")["rows"]]
    assert days == [(DAY, 4), ("2026-11-22", 1)]
    (shown,) = operator.show(job)["usage"]
    assert (shown["key"], shown["calls"]) == ("claude-haiku-4-5", 5)
    figures = operator.raw("GET", "/metrics").read().decode()
    assert 'agent_tokens_consumed_total{model="claude-haiku-4-5",role=""} 5550.0' in figures
    assert 'agent_calls_unpriced_total{model="claude-haiku-4-5",role=""} 1.0' in figures


def test_usage_of_a_host_that_never_came_back_is_not_lost(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit()
    (task,) = agent.take()
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=1))
    beat(agent, task, row(7))
    control.step_boot(10_000)
    control.run(lambda: usage.flush(control.plane))
    assert report(operator, "organization")["total"]["calls"] == 7


def test_a_late_word_on_a_task_that_was_given_up_counts(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit(retry={"max_attempts": 1})
    (task,) = agent.take()
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=1))
    control.step_boot(10_000)
    agent.report(agent.finished(task, State.LOST, Reason.HOST_RESTARTED, models=[row(2)]))
    assert report(operator, "agent")["total"]["calls"] == 2


def test_groups_are_of_what_was_asked_for(control: Any) -> None:
    operator = control.operator
    for model in ("gpt-5", "claude-haiku-4-5"):
        agent = control.agent()
        operator.submit(name=model)
        (task,) = agent.take()
        agent.run(task, models=[row(1 if model == "gpt-5" else 2, model=model)])
    keys = {by: [one["key"] for one in report(operator, by)["rows"]] for by in ("model", "organization", "day")}
    assert keys == {"model": ["claude-haiku-4-5", "gpt-5"], "organization": ["default"], "day": [DAY]}
    assert len(report(operator, "agent")["rows"]) == 2
    cut = report(operator, "model", limit="1")
    assert (len(cut["rows"]), cut["is_cut"], cut["total"]["calls"]) == (1, True, 3)
    with pytest.raises(errors.AgentinaError, match="NOT_FOUND"):
        report(operator, "model", organization="other")
    operator.call("PUT", "/v1/organizations/other", {})
    assert report(operator, "model", organization="other")["rows"] == []


@pytest.mark.parametrize(
    "query", ["by=moon", "by=day&since=yesterday", "by=day&until=2026-13-01", "since=2026-12-02&until=2026-12-01"]
)
def test_what_is_no_group_or_day_is_refused(control: Any, query: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        control.operator.call("GET", f"/v1/usage?{query}")
    assert caught.value.code == "INPUT_INVALID"


def test_a_kill_of_the_control_plane_loses_nothing_that_is_told_again(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data", flush_seconds=3600.0) as serving:
        operator = simulated.Operator(serving.url, serving.token)
        agent = simulated.new_agent(serving.url, operator)
        operator.submit()
        (task,) = agent.take()
        agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=1))
        beat(agent, task, row(2))
        serving.keep_address()
        serving.kill()
        agent.close()
        operator.close()
        serving.start()
        agent.open((task, State.RUNNING))
        beat(agent, task, row(2))
        agent.report(agent.finished(task, models=[row(3)]))
        assert report(operator, "job")["total"]["calls"] == 3


def test_a_figure_no_provider_ever_billed_does_not_break_the_sums(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    most = (1 << 62) - 1
    for _ in range(3):
        operator.submit()
        (task,) = agent.take()
        agent.run(task, models=[msgspec.structs.replace(row(1), cost_nano=most, input=most)])
    assert report(operator, "model")["total"]["calls"] == 3


def test_what_an_agent_said_of_its_tools_and_context_is_counted_at_its_end(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit()
    (task,) = agent.take()
    told = [wire.ToolUse(name="Bash", calls=3, errors=1), wire.ToolUse(name="Edit", calls=1, denials=1)]
    run = wire.AgentRun(
        tool_calls=5, tool_errors=2, denials=1, tools=told, context_tokens=150_000, context_window=200_000
    )
    agent.run(task, agent=run)
    figures = operator.raw("GET", "/metrics").read().decode()
    for tool, status, count in (
        ("Bash", "ok", 2), ("Bash", "error", 1), ("Edit", "ok", 1), ("Edit", "denied", 1), ("", "error", 1),
    ):  # fmt: skip
        assert f'agent_tool_calls_total{{role="",status="{status}",tool="{tool}"}} {count}.0' in figures
    assert 'status="denied",tool=""' not in figures
    assert 'agent_context_utilization_bucket{le="0.7",role=""} 0.0' in figures
    assert 'agent_context_utilization_bucket{le="0.8",role=""} 1.0' in figures


def test_models_without_end_make_no_rows_without_end(control: Any) -> None:
    agent, job = control.agent(), control.operator.submit()
    (task,) = agent.take()
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=1))
    for part in range(3):
        beat(agent, task, *(row(model=f"made-up-{part}-{number}") for number in range(100)))
        control.run(lambda: usage.flush(control.plane))
    shown = control.operator.show(job)["usage"]
    assert len(shown) == 2 * budgets.MAX_ROWS
    # What is known goes on.
    beat(agent, task, row(2, model="made-up-0-0"))
    control.run(lambda: usage.flush(control.plane))
    assert {one["key"]: one["calls"] for one in control.operator.show(job)["usage"]}["made-up-0-0"] == 2


def test_a_figure_beyond_all_numbers_keeps_no_job_waiting(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    needed = operator.submit()
    after = operator.submit(needs=[needed])
    (task,) = agent.take()
    assert agent.take() == []
    used = dict.fromkeys(("memory_peak_bytes", "io_read_bytes", "io_operations", "network_sent_bytes"), 10**400)
    outcome = {"state": "succeeded", "reason": "exit-zero", "usage": used}
    report = {"number": 1, "at_ms": 0, "task_id": task, "kind": "finished", "outcome": outcome}
    # The standard library's JSON: it has numbers of any size.
    message = json.dumps({"session": agent.session, "stream": agent.stream, "reports": [report]})
    assert agent.call("POST", "/v1/agent/reports", message.encode())["applied"] == 1
    assert agent.take() == [f"{after}.1"]

"""The audit of work: who asked for what, and what it touched."""

from __future__ import annotations

from typing import Any

from agentina.protocol import budgets
from tests.integration.control import simulated


def records(operator: simulated.Operator) -> list[tuple[str, str, str, Any]]:
    entries = operator.call("GET", "/v1/audit?limit=1000")["entries"]
    known = {"job.submit", "task.end"}
    return [(e["action"], e["actor"], e["subject"], e["detail"]) for e in entries if e["action"] in known]


def test_an_agents_job_leaves_who_asked_for_what_and_what_it_touched(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    agent.open(runners=["claude-code"])
    job = operator.submit(
        runner="claude-code", payload={"prompt": "fix it", "model": "claude-haiku-4-5"},
        workspace={"git": "https://ann:hunter2@git.example.com/team/app.git"},
        scope={"hosts": ["pypi.org"], "paths": ["src"]}, budget={"cost": 1.5},
    )  # fmt: skip
    (task,) = agent.take()
    row = budgets.ModelUsage(model="claude-haiku-4-5", day="2026-11-21", calls=1, input=10, output=5, cost_nano=35_000)
    agent.run(task, commit="0123abc", changed=["src/a.py"], hosts=["pypi.org:443"], models=[row])
    submitted, ended = records(operator)
    assert submitted == (
        "job.submit", "operator:admin", job,
        {
            "name": submitted[3]["name"], "runner": "claude-code", "model": "claude-haiku-4-5",
            "repository": "git.example.com/team/app", "hosts": ["pypi.org"], "paths": ["src"],
            "budget": {"cost": 1.5},
        },
    )  # fmt: skip
    assert ended == (
        "task.end", f"agent:{agent.activated.agent_id}", task,
        {
            "commit": "0123abc", "changed": ["src/a.py"], "hosts": ["pypi.org:443"], "models": ["claude-haiku-4-5"],
            "tokens": 15, "cost_nano": 35_000, "state": "succeeded",
        },
    )  # fmt: skip
    assert operator.call("GET", "/v1/audit/verify")["intact"]


def test_long_lists_are_cut_and_say_so(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit(scope={"hosts": [f"h{number}.example.com" for number in range(60)]})
    (task,) = agent.take()
    agent.run(task, changed=[f"{number}.py" for number in range(400)])
    submitted, ended = records(operator)
    assert submitted[3]["hosts"][50:] == ["and 10 more"]
    assert ended[3]["changed"][50:] == ["and 350 more"]


def test_a_plain_command_leaves_no_record(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit()
    (task,) = agent.take()
    agent.run(task)
    assert records(operator) == []

from __future__ import annotations

from typing import Any

import pytest

from agentina.control import fleet
from agentina.control.services import blockers

WANTED = fleet.JobClass(id=1, organization_id=1, role="coder", labels={"gpu": "a100"}, runner="command")
GOOD: dict[str, Any] = {
    "organization_id": 1, "role": "coder", "labels": {"gpu": "a100"}, "runners": ["command"], "state": "active",
    "is_online": True, "held": 0, "max_tasks": 1, "slots": 1, "memory_bytes": 4 << 30,
}  # fmt: skip


def explain(*changes: dict[str, Any], **waits: Any) -> list[str]:
    candidates = [blockers.Candidate(**{**GOOD, **change}) for change in changes]
    return blockers.explain(blockers.Waits(memory_bytes=2 << 30, **waits), WANTED, candidates)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"organization_id": 2}, "no agents"),
        ({"role": "tester"}, "role 'coder'"),
        ({"labels": {"gpu": "none"}}, "gpu=a100"),
        ({"runners": []}, "runner 'command'"),
        ({"is_online": False}, "online"),
        ({"state": "quarantined"}, "quarantine"),
        ({"held": 1}, "busy"),
        ({"slots": 0}, "takes work"),
        ({"memory_bytes": 1 << 30}, "needs 2 GiB"),
    ],
)
def test_the_obstacle_is_named(change: dict[str, object], said: str) -> None:
    (sentence,) = explain(change)
    assert said in sentence


def test_one_suitable_agent_is_enough() -> None:
    assert explain({"is_online": False}, {"held": 1}, {}) == []


def test_the_obstacle_of_the_nearest_agents_is_named() -> None:
    (sentence,) = explain({"role": "tester"}, {"is_online": False}, {"held": 1})
    assert "busy" in sentence


def test_what_the_job_itself_waits_for_comes_first() -> None:
    assert "job_x" in explain({}, needs=["job_x"])[0]
    assert "1m 30s" in explain({}, backoff_seconds=90.0)[0]

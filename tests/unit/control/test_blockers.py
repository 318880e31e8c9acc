from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.control import fleet
from agentina.control.services import blockers

WANTED = fleet.JobClass(id=1, organization_id=1, role="coder", labels={"gpu": "a100"}, runner="command")
GOOD: dict[str, Any] = {
    "name": "build-1/default", "organization_id": 1, "role": "coder", "labels": {"gpu": "a100"},
    "runners": ["command"], "state": "active", "is_online": True, "held": 0, "max_tasks": 1, "slots": 1,
    "memory_bytes": 4 << 30,
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


@pytest.mark.parametrize(
    ("gateway", "need", "is_said"),
    [
        ("none", "budget", True),
        ("none", "hosts", False),
        ("none", "", False),
        ("unusable", "budget", True),
        ("unusable", "hosts", True),
        ("unusable", "", False),
        ("", "budget", False),
        ("", "hosts", False),
    ],
)
def test_a_gateway_that_does_not_serve_the_job_is_named(gateway: str, need: str, *, is_said: bool) -> None:
    change = {"gateway": gateway, "gateway_problem": "no key"}
    said = explain(change, change, gateway=need)
    assert bool(said) is is_said
    for sentence in said:
        assert "On build-1/default (and 1 more): no key (GATEWAY_UNUSABLE)." in sentence
        assert errors.GATEWAY_UNUSABLE.remedy in sentence


def test_runners_that_a_broken_gateway_withholds_are_explained() -> None:
    wanted = msgspec.structs.replace(WANTED, runner="codex")
    broken = blockers.Candidate(**{**GOOD, "gateway": "unusable", "gateway_problem": "no key"})
    others = [blockers.Candidate(**GOOD), broken]
    (sentence,) = blockers.explain(blockers.Waits(), wanted, others)
    assert sentence.startswith(
        "None of 2 agents has the runner 'codex'. No AI agents are offered without a gateway. On"
    )
    assert "no key (GATEWAY_UNUSABLE)" in sentence
    (sentence,) = blockers.explain(blockers.Waits(), wanted, others[:1])
    assert "gateway" not in sentence
    assert "`agentina runner install`" in sentence


def test_a_pause_says_what_it_is_for() -> None:
    said = explain({"gateway": "none", "gateway_problem": "it has none"}, backoff_seconds=4.0, gateway="budget")
    assert len(said) == 2
    assert "it has none (GATEWAY_UNUSABLE)" in said[1]


def test_one_suitable_agent_is_enough() -> None:
    assert explain({"is_online": False}, {"held": 1}, {}) == []


def test_the_obstacle_of_the_nearest_agents_is_named() -> None:
    (sentence,) = explain({"role": "tester"}, {"is_online": False}, {"held": 1})
    assert "busy" in sentence


def test_what_the_job_itself_waits_for_comes_first() -> None:
    assert "job_x" in explain({}, needs=["job_x"])[0]
    assert "1m 30s" in explain({}, backoff_seconds=90.0)[0]

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentina.host.work import intake
from agentina.protocol import jobs, signing, wire
from agentina.protocol.states import Reason, State

KEY = signing.SigningKey.generate()
TASK = "job_0123456789abcdef.1"
JOB = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}})


def assignment(**changes: Any) -> wire.Assignment:
    fields = {
        "task_id": TASK, "job_id": "job_0123456789abcdef", "epoch": 1, "agent_id": "me", "session": 3, "poll": 7,
        "organization": "default", "issued_ms": 0, "lease_seconds": 60.0, "job": JOB, **changes,
    }  # fmt: skip
    return wire.Assignment(**fields)


def situation(**changes: Any) -> intake.Situation:
    fields = {
        "trusted": {KEY.public.id: KEY.public}, "agent_id": "me", "session": 3, "poll": 7, "acknowledged": 5,
        "held": set(), "runners": {"command"}, "blocks": [], "check_policy": lambda _: [], "host": "h", **changes,
    }  # fmt: skip
    return intake.Situation(**fields)


def judge(content: msgspec.Struct | bytes, **changes: Any) -> intake.Verdict:
    payload = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return intake.judge(KEY.sign("assignment", payload), situation(**changes))


def test_good_assignment_is_taken() -> None:
    verdict = judge(assignment())
    assert isinstance(verdict, intake.Taken)
    assert verdict.assignment.job == JOB


def test_unacknowledged_answers_count_when_they_come_again() -> None:
    assert isinstance(judge(assignment(poll=6)), intake.Taken)


@pytest.mark.parametrize("changes", [{"agent_id": "other"}, {"session": 2}, {"session": 4}, {"poll": 5}, {"poll": 8}])
def test_misaddressed_and_replayed_assignments_are_refused(changes: dict[str, Any]) -> None:
    verdict = judge(assignment(**changes))
    assert isinstance(verdict, intake.Refused)
    assert (verdict.reason, verdict.error.code) == (Reason.SIGNATURE, "SIGNATURE_INVALID")
    assert verdict.outcome.state is State.REFUSED


def test_signature_for_another_purpose_is_refused() -> None:
    signed = KEY.sign("license", msgspec.json.encode(assignment()))
    assert isinstance(intake.judge(signed, situation()), intake.Refused)


def test_held_task_is_dropped_silently_whatever_it_says() -> None:
    assert judge(assignment(session=1), held={TASK}) == intake.Dropped("")


@pytest.mark.parametrize("task_id", ["../../etc/passwd", "job_x.1", ""])
def test_task_id_that_is_none_is_dropped(task_id: str) -> None:
    assert isinstance(judge(assignment(task_id=task_id)), intake.Dropped)


def test_garbage_is_dropped() -> None:
    assert isinstance(judge(b"not json"), intake.Dropped)


def test_unknown_runner_is_unsupported() -> None:
    document = msgspec.to_builtins(assignment())
    document["job"]["runner"] = "teleport"
    verdict = judge(msgspec.json.encode(document))
    assert isinstance(verdict, intake.Refused)
    assert verdict.reason is Reason.UNSUPPORTED
    assert isinstance(judge(assignment(), runners=set()), intake.Refused)


def test_host_that_takes_no_work_gives_it_back() -> None:
    blocks = ["the policy cannot be read", "drained"]
    verdict = judge(assignment(), blocks=blocks, check_policy=lambda _: ["nothing is known to be allowed"])
    assert verdict == intake.Returned(TASK, "the policy cannot be read; drained")


def test_what_is_not_for_us_is_never_given_back() -> None:
    assert isinstance(judge(assignment(session=2), blocks=["drained"]), intake.Refused)
    assert isinstance(judge(assignment(), blocks=["drained"], runners=set()), intake.Refused)
    assert isinstance(judge(assignment(), blocks=["drained"], held={TASK}), intake.Dropped)


def test_policy_refuses_with_its_rules() -> None:
    verdict = judge(assignment(), check_policy=lambda _: ["too big", "too long"])
    assert isinstance(verdict, intake.Refused)
    assert "too big; too long" in verdict.outcome.detail

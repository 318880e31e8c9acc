"""Checkpoints at the control plane: which are kept, which task goes on from which, and who may read them."""

from __future__ import annotations

import hashlib
import http.client
import signal
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.control.services import checkpoints
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.integration.control import conftest, simulated


def store(agent: simulated.Agent, task: str, number: int, content: bytes) -> wire.ArtifactInfo:
    """Send a checkpoint as a host does: from where the control plane says."""
    info = wire.ArtifactInfo(
        name=f"checkpoint-{number:06d}.tar", size=len(content), sha256=hashlib.sha256(content).hexdigest(),
        kind="checkpoint",
    )  # fmt: skip
    path = f"/v1/agent/tasks/{task}/artifacts"
    told = agent.call("POST", path, wire.ArtifactBegin(session=agent.session, artifact=info))
    if not told.get("complete"):
        offset = told["offset"]
        agent.call("PUT", f"{path}/{info.name}?session={agent.session}&offset={offset}", content[offset:])
    return info


def start(agent: simulated.Agent) -> wire.Assignment:
    (assignment,) = agent.assignments(agent.poll())
    agent.report(agent.fact(assignment.task_id, "accepted"), agent.fact(assignment.task_id, "running", pid=1))
    return assignment


def end(agent: simulated.Agent, task: str, state: State, reason: Reason) -> None:
    agent.report(agent.fact(task, "finishing"), agent.finished(task, state, reason))


def read(agent: simulated.Agent, task: str, of: str, name: str, *, offset: int = 0) -> bytes:
    query = f"of={of}&name={name}&session={agent.session}&offset={offset}"
    answer = agent.raw("GET", f"/v1/agent/tasks/{task}/checkpoint?{query}")
    body = answer.read()
    assert answer.status == 200, body
    return body


def test_a_job_goes_on_from_its_newest_checkpoint(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit(retry={"max_attempts": 1, "backoff": 0})
    first = start(agent)
    assert first.origin is None
    store(agent, first.task_id, 1, b"old" * 1000)
    newest = store(agent, first.task_id, 2, b"new" * 1000)
    end(agent, first.task_id, State.CHECKPOINTED, Reason.CHECKPOINT)
    # Being moved has used no attempt up, of which there was one only.
    second = start(agent)
    assert second.origin == wire.Origin(task_id=first.task_id, artifact=newest)
    assert read(agent, second.task_id, first.task_id, newest.name) == b"new" * 1000
    assert read(agent, second.task_id, first.task_id, newest.name, offset=2999) == b"w"
    assert read(agent, second.task_id, first.task_id, newest.name, offset=3000) == b""
    # Before it has one of its own it is moved again.
    end(agent, second.task_id, State.CHECKPOINTED, Reason.CHECKPOINT)
    third = start(agent)
    assert third.origin == second.origin
    end(agent, third.task_id, State.SUCCEEDED, Reason.EXIT_ZERO)
    shown = operator.show(job)
    assert shown["job"]["state"] == "succeeded"
    assert shown.get("artifacts", []) == []
    assert [line["text"] for line in shown["events"] if "is stored" in line["text"]] == [
        "checkpoint-000001.tar is stored (2.9 KiB)", "checkpoint-000002.tar is stored (2.9 KiB)",
    ]  # fmt: skip


@pytest.mark.parametrize("state", [State.FAILED, State.TIMED_OUT, State.OUT_OF_MEMORY])
def test_after_a_failure_it_begins_anew(control: Any, operator: simulated.Operator, state: State) -> None:
    agent = control.agent()
    operator.submit(retry={"max_attempts": 9, "on": [state.value, "lost"], "backoff": 0})
    first = start(agent)
    store(agent, first.task_id, 1, b"content")
    end(agent, first.task_id, state, Reason.EXIT_NONZERO)
    second = start(agent)
    assert second.origin is None
    end(agent, second.task_id, State.LOST, Reason.SUPERVISOR_DIED)
    third = start(agent)
    assert third.origin is not None
    assert third.origin.task_id == first.task_id


def test_one_that_was_given_back_does_not_break_the_chain(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit(retry={"max_attempts": 2, "backoff": 0})
    first = start(agent)
    store(agent, first.task_id, 1, b"content")
    end(agent, first.task_id, State.LOST, Reason.HOST_RESTARTED)
    (second,) = agent.assignments(agent.poll())
    agent.report(agent.fact(second.task_id, "returned", detail="disk full"))
    third = start(agent)
    assert third.origin is not None
    assert third.origin == second.origin


def test_two_are_kept_and_what_was_cut_off_is_not(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit(retry={"backoff": 0})
    first = start(agent)
    for number in range(1, 5):
        store(agent, first.task_id, number, b"%d" % number * 100)
    # Announced and not sent: it does not count, and the next one takes its place.
    for number in (5, 6):
        cut = wire.ArtifactInfo(
            name=f"checkpoint-{number:06d}.tar", size=5, sha256="0" * 64, kind="checkpoint"
        )  # fmt: skip
        path = f"/v1/agent/tasks/{first.task_id}/artifacts"
        agent.call("POST", path, wire.ArtifactBegin(session=agent.session, artifact=cut))
        agent.call("PUT", f"{path}/{cut.name}?session={agent.session}&offset=0", b"half")
    end(agent, first.task_id, State.LOST, Reason.HOST_RESTARTED)
    second = start(agent)
    assert second.origin is not None
    assert second.origin.artifact.name == "checkpoint-000004.tar"
    assert read(agent, second.task_id, first.task_id, "checkpoint-000003.tar") == b"3" * 100
    for gone in (2, 5, 6):
        with pytest.raises(AssertionError, match="ARTIFACT_UNKNOWN"):
            read(agent, second.task_id, first.task_id, f"checkpoint-{gone:06d}.tar")
    stored = [path for path in (control.settings.data / "blobs/artifacts").rglob("*") if path.is_file()]
    assert len(stored) == 3, stored  # the two, and the half of one


def test_figures_tell_the_age_of_the_oldest(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()

    def figure(name: str) -> float:
        lines = operator.raw("GET", "/metrics").read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    operator.submit()
    task = start(agent).task_id
    assert figure("checkpoint_oldest_age_seconds") == 0
    store(agent, task, 1, b"1")
    control.clock.boot_offset += 60
    assert 60 <= figure("checkpoint_oldest_age_seconds") < 90
    store(agent, task, 2, b"2")
    assert figure("checkpoint_oldest_age_seconds") < 30
    assert figure("checkpoints_stored_total") == 2
    control.clock.boot_offset += 60
    end(agent, task, State.SUCCEEDED, Reason.EXIT_ZERO)
    assert figure("checkpoint_oldest_age_seconds") == 0


def test_it_is_for_the_tasks_of_its_job_only(control: Any, operator: simulated.Operator) -> None:
    agent, other = control.agent(), control.agent()
    operator.submit(retry={"backoff": 0})
    first = start(agent)
    info = store(agent, first.task_id, 1, b"content")
    operator.submit()
    stranger = start(other)
    for asks, task in ((other, first.task_id), (other, stranger.task_id), (agent, first.task_id)):
        with pytest.raises(AssertionError, match=r"TASK_UNKNOWN|ARTIFACT_UNKNOWN"):
            read(asks, task, first.task_id, info.name)
    huge = wire.ArtifactInfo(name="checkpoint-000002.tar", size=(1 << 30) + 1, sha256="0" * 64, kind="checkpoint")
    with pytest.raises(errors.AgentinaError, match="INPUT_TOO_LARGE"):
        agent.call(
            "POST", f"/v1/agent/tasks/{first.task_id}/artifacts",
            wire.ArtifactBegin(session=agent.session, artifact=huge),
        )  # fmt: skip


def remove(control: Any) -> list[str]:
    """Names of the files that are left when what nobody needs is gone."""
    control.run(checkpoints.Removal(control.plane).remove_if_due)
    stored = (control.settings.data / "blobs/artifacts").rglob("*")
    return [path.parent.name for path in stored if path.is_file()]


def test_those_of_ended_jobs_are_deleted(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit(retry={"max_attempts": 1, "backoff": 0})
    first = start(agent)
    store(agent, first.task_id, 1, b"moved")
    end(agent, first.task_id, State.CHECKPOINTED, Reason.CHECKPOINT)
    second = start(agent)
    # It goes on: the one that it came from is still there.
    assert remove(control) == [first.task_id]
    store(agent, second.task_id, 1, b"1")
    store(agent, second.task_id, 2, b"2")
    end(agent, second.task_id, State.SUCCEEDED, Reason.EXIT_ZERO)
    assert remove(control) == []


def test_those_of_a_lost_job_are_there_for_who_retries_it(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    lost, forgotten = [operator.submit(retry={"max_attempts": 1}) for _ in "ab"]
    for assignment in agent.assignments(agent.poll()):
        task = assignment.task_id
        agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=1))
        store(agent, task, 1, b"content")
        end(agent, task, State.LOST, Reason.HOST_RESTARTED)
    assert sorted(remove(control)) == sorted([f"{lost}.1", f"{forgotten}.1"])
    operator.call("POST", f"/v1/jobs/{lost}/retry")
    control.clock.wall_offset_ms += checkpoints.KEEP_LOST_SECONDS * 1000 + 1000
    assert remove(control) == [f"{lost}.1"]
    control.clock.wall_offset_ms = 0  # its license is not what this is about
    again = start(agent)
    assert again.origin is not None
    assert again.origin.task_id == f"{lost}.1"


def test_a_wish_outlives_the_control_plane(tmp_path: Path) -> None:
    with conftest.ControlPlane(tmp_path) as control:
        job = control.operator.submit()
        agent = control.agent()
        task = start(agent).task_id
        control.operator.call("POST", f"/v1/jobs/{job}/checkpoint")
        agent.close()
    again = {"listen": control.url.removeprefix("http://")}
    with conftest.ControlPlane(tmp_path, **again):
        agent.open((task, State.RUNNING))
        assert agent.poll(acknowledge=False).checkpoint == [task]
        assert agent.poll().checkpoint == [task]
        assert agent.poll().checkpoint == []
        agent.close()
    with conftest.ControlPlane(tmp_path, **again):
        agent.open((task, State.RUNNING))
        assert agent.poll().checkpoint == []


#: Functions after which the control plane is killed, in the order they come in while it stores the third checkpoint;
#: the one that its host sends then, if it is not gone; the one that the job goes on from.
CRASHES = [
    ("agentina.control.blobs._append_at", 3, 3),  # the last piece is on the disk
    ("agentina.control.blobs._append_at", None, 2),
    ("agentina.control.blobs._finish", 4, 4),  # it has its name
    ("agentina.control.blobs._finish", None, 2),
    ("agentina.control.services.checkpoints.complete", 3, 3),  # within the transaction
    ("agentina.control.blobs._remove", 4, 4),  # the oldest is gone
    ("agentina.control.blobs._remove", None, 3),
]


@pytest.mark.parametrize(("point", "sent", "newest"), CRASHES)
def test_a_kill_around_the_record_loses_and_leaves_nothing(
    tmp_path: Path, point: str, sent: int | None, newest: int
) -> None:
    with simulated.process(tmp_path / "data") as serving:
        serving.keep_address()
        operator = simulated.Operator(serving.url, serving.token)
        agent = simulated.new_agent(serving.url, operator)
        operator.submit(retry={"max_attempts": 2, "backoff": 0})
        first = start(agent).task_id
        for number in (1, 2):
            store(agent, first, number, b"%d" % number * 1000)
        serving.kill()
        serving.start(dies_after=point)
        for client in (operator, agent):
            client.close()
        agent.open((first, State.RUNNING))
        with pytest.raises((OSError, http.client.HTTPException)):
            store(agent, first, 3, b"3" * 1000)
        assert serving.close() == -signal.SIGKILL
    with conftest.ControlPlane(tmp_path / "data", listen=serving.url.removeprefix("http://")) as control:
        agent.open((first, State.RUNNING))
        if sent is not None:
            store(agent, first, sent, b"%d" % sent * 1000)
            assert len(remove(control)) == checkpoints.KEPT
        end(agent, first, State.LOST, Reason.HOST_RESTARTED)
        second = start(agent)
        assert second.origin is not None
        name = f"checkpoint-{newest:06d}.tar"
        assert second.origin.artifact.name == name
        assert read(agent, second.task_id, first, name) == b"%d" % newest * 1000
        end(agent, second.task_id, State.SUCCEEDED, Reason.EXIT_ZERO)
        control.clock.wall_offset_ms += checkpoints.KEEP_LOST_SECONDS * 1000 + 1000
        assert remove(control) == []
        agent.close()

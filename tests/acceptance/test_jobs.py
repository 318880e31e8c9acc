"""What a job may ask for, and what an operator may do with it, through the whole stack."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path_factory.mktemp("jobs"), heartbeat_seconds=1.0) as started:
        started.install("default", "--role", "tester", "--label", "zone=a", "--max-concurrent-tasks", "1")
        started.start_daemon()
        yield started


@pytest.fixture
def agent(fleet: fleets.Fleet) -> str:
    return fleet.client.list_agents().agents[0].id


@pytest.fixture
def blocker(fleet: fleets.Fleet, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A job that holds the only slot until its gate is touched."""
    gate = tmp_path / "gate"
    job = fleet.submit_script(f"until [ -e {gate} ]; do sleep 0.02; done")
    fleet.wait_state(job, State.RUNNING)
    yield job, gate
    gate.touch()
    fleet.wait_final(job)


def git(repository: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments],
        cwd=repository, check=True, capture_output=True,
    )  # fmt: skip


def test_needs_are_met_in_order_and_broken_ones_cancel(fleet: fleets.Fleet, tmp_path: Path) -> None:
    marks, gate = tmp_path / "marks", tmp_path / "gate"
    first = fleet.submit_script(f"until [ -e {gate} ]; do sleep 0.02; done; echo first >> {marks}")
    second = fleet.submit_script(f"echo second >> {marks}", needs=[first])
    waiting = fleet.job(second)
    assert waiting.job.reason is Reason.WAITING_FOR_NEEDS
    assert first in " ".join(waiting.blockers)
    gate.touch()
    assert fleet.wait_final(second).job.state is State.SUCCEEDED
    assert marks.read_text() == "first\nsecond\n"
    gate.unlink()
    broken = fleet.submit_script(f"until [ -e {gate} ]; do sleep 0.02; done; exit 1")
    dependent = fleet.submit_script(f"echo never >> {marks}", needs=[broken])
    further = fleet.submit_script(f"echo never >> {marks}", needs=[dependent])
    gate.touch()
    for job in (dependent, further):
        view = fleet.wait_final(job)
        assert (view.job.state, view.job.reason) == (State.CANCELED, Reason.NEED_NOT_MET)
    assert "never" not in marks.read_text()


def test_unknown_need_is_refused(fleet: fleets.Fleet) -> None:
    with pytest.raises(errors.AgentinaError) as refused:
        fleet.submit_script("true", needs=["job_0000000000000000"])
    assert refused.value.entry.status in {400, 404, 409, 422}


def test_failed_attempts_are_repeated_then_dead(fleet: fleets.Fleet, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    script = f'echo "$AGENTINA_TASK_ID" >> {marks}; [ "$(wc -l < {marks})" -ge 3 ]'
    retry = {"max_attempts": 3, "on": ["failed"], "backoff": 0.1}
    view = fleet.wait_final(fleet.submit_script(script, retry=retry))
    assert view.job.state is State.SUCCEEDED
    assert [task.state for task in view.tasks] == [State.FAILED, State.FAILED, State.SUCCEEDED]
    assert marks.read_text().split() == [task.id for task in view.tasks]

    dead = fleet.submit_script("exit 1", retry={**retry, "max_attempts": 2})
    view = fleet.wait_final(dead)
    assert (view.job.state, view.dead_letter, view.job.attempts) == (State.FAILED, True, 2)
    again = fleet.client.retry_job(dead)
    assert again.job.state is not State.FAILED
    view = fleet.wait_final(dead)
    assert view.job.state is State.FAILED
    assert len(view.tasks) > 2


def test_verify_decides(fleet: fleets.Fleet) -> None:
    good = fleet.submit_script("echo 1 > made", verify={"argv": ["test", "-s", "made"]})
    bad = fleet.submit_script("echo fine", verify={"script": "echo checking; test -e missing"})
    assert fleet.wait_final(good).job.state is State.SUCCEEDED
    view = fleet.wait_final(bad)
    assert (view.job.state, view.job.reason) == (State.FAILED, Reason.VERIFY_FAILED)
    assert fleet.output(bad) == b"fine\nchecking\n"


def test_workspace_of_a_repository_gives_a_patch_that_applies(fleet: fleets.Fleet, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    (origin / "text").write_text("one\ntwo\n")
    (origin / "gone").write_text("x")
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "first")
    script = "sed -i s/two/TWO/ text; rm gone; printf '\\000\\377' > binary; mkdir out; echo kept > out/report"
    job = fleet.submit_script(script, workspace={"git": str(origin), "ref": "main"}, artifacts=["out/*"])
    view = fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, view.job
    patch = next(artifact for artifact in view.artifacts if artifact.kind == "patch")
    pieces: list[bytes] = []
    fleet.client.read_artifact(job, patch.name, pieces.append)
    (tmp_path / "p.patch").write_bytes(b"".join(pieces))
    git(origin, "apply", "--binary", str(tmp_path / "p.patch"))
    assert (origin / "text").read_text() == "one\nTWO\n"
    assert (origin / "binary").read_bytes() == b"\0\xff"
    assert not (origin / "gone").exists()
    assert "out/report" in {artifact.name for artifact in view.artifacts}


def test_repository_that_is_not_there(fleet: fleets.Fleet, tmp_path: Path) -> None:
    view = fleet.wait_final(fleet.submit(["true"], workspace={"git": str(tmp_path / "nowhere")}))
    assert (view.job.state, view.job.reason) == (State.FAILED, Reason.WORKSPACE_FAILED)
    assert view.tasks[0].outcome is not None
    assert view.tasks[0].outcome.error_code


def test_cancel_queued_and_running(fleet: fleets.Fleet, blocker: tuple[str, Path], tmp_path: Path) -> None:
    queued = fleet.submit_script(f"touch {tmp_path}/ran")
    canceled = fleet.client.cancel_job(queued, reason="not needed")
    assert canceled.job.state is State.CANCELED
    assert not canceled.tasks
    running, _ = blocker
    fleet.client.cancel_job(running)
    view = fleet.wait_final(running)
    assert (view.job.state, view.job.reason) == (State.CANCELED, Reason.CANCELED_BY_OPERATOR)
    assert not (tmp_path / "ran").exists()


def test_priority_then_age(fleet: fleets.Fleet, blocker: tuple[str, Path], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    wanted = [("low", 10), ("first", 50), ("second", 50), ("high", 90)]
    jobs = [fleet.submit_script(f"echo {name} >> {marks}", priority=priority) for name, priority in wanted]
    blocker[1].touch()
    for job in jobs:
        assert fleet.wait_final(job).job.state is State.SUCCEEDED
    assert marks.read_text().split() == ["high", "first", "second", "low"]


def test_drained_from_afar_and_resumed(fleet: fleets.Fleet, agent: str) -> None:
    fleet.client.act_on_agent(agent, "drain", reason="kernel")
    job = fleet.submit(["true"])
    fleets.wait_for(lambda: (fleet.status() or {}).get("state") == "draining", "the daemon knows")
    view = fleet.job(job)
    assert view.job.state is State.QUEUED
    assert "drain" in " ".join(view.blockers)
    fleet.client.act_on_agent(agent, "resume")
    assert fleet.wait_final(job).job.state is State.SUCCEEDED


def test_quarantined_agent_gets_nothing(fleet: fleets.Fleet, agent: str) -> None:
    fleet.client.act_on_agent(agent, "quarantine", reason="odd")
    fleets.wait_for(lambda: "AGENT_QUARANTINED" in fleet.problems(), "the daemon knows")
    assert fleet.run("status").returncode == 1
    job = fleet.submit(["true"])
    view = fleet.job(job)
    assert view.job.state is State.QUEUED
    assert "quarantine" in " ".join(view.blockers)
    fleet.client.act_on_agent(agent, "resume")
    assert fleet.wait_final(job).job.state is State.SUCCEEDED
    fleets.wait_for(lambda: fleet.run("status").returncode == 0, "the host is healthy again")


def test_policy_of_the_host_refuses(fleet: fleets.Fleet) -> None:
    fleet.layout.policy_file.write_text("executables: [/usr/bin/git]\n")
    reload_policy(fleet)
    try:
        view = fleet.wait_final(fleet.submit(["/bin/true"]))
        assert (view.job.state, view.job.reason) == (State.REFUSED, Reason.POLICY)
        assert "/bin/true" in view.job.detail
        assert view.tasks[0].started_ms is None
    finally:
        fleet.layout.policy_file.unlink()
        reload_policy(fleet)
    assert fleet.wait_final(fleet.submit(["/bin/true"])).job.state is State.SUCCEEDED


def reload_policy(fleet: fleets.Fleet) -> None:
    said = fleet.log("default").count("policy was read again")
    os.kill(fleet.pid("default"), signal.SIGHUP)
    fleets.wait_for(lambda: fleet.log("default").count("policy was read again") > said, "the policy is read again")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"role": "painter"}, "painter"),
        ({"labels": {"zone": "b"}}, "zone"),
        ({"resources": {"memory": "900TiB"}}, "memory"),
    ],
)
def test_job_nobody_can_run_says_why(fleet: fleets.Fleet, keys: dict[str, object], word: str) -> None:
    job = fleet.submit(["true"], **keys)
    view = fleet.job(job)
    assert view.job.state is State.QUEUED
    assert word in " ".join(view.blockers), view.blockers
    assert word in fleet.answer("job", "show", job)
    fleet.client.cancel_job(job)


def test_same_key_makes_one_job_and_another_document_is_refused(fleet: fleets.Fleet) -> None:
    document = {"name": "once", "payload": {"argv": ["true"]}}
    made = [fleet.client.submit_job(document, key="e2e-1") for _ in range(3)]
    made += list(fleet.client.submit_jobs([document], key="e2e-1"))
    assert len({one.id for one in made}) == 1
    assert [one.created for one in made] == [True, False, False, False]
    with pytest.raises(errors.AgentinaError) as refused:
        fleet.client.submit_job({**document, "name": "other"}, key="e2e-1")
    assert refused.value.entry.status in {409, 422}
    assert len(fleet.wait_final(made[0].id).tasks) == 1


def test_program_that_does_not_exist(fleet: fleets.Fleet) -> None:
    view = fleet.wait_final(fleet.submit(["/nowhere/program"]))
    assert (view.job.state, view.job.reason) == (State.FAILED, Reason.START_FAILED)
    assert "/nowhere/program" in view.job.detail


def test_removed_agents_tasks_are_lost_and_run_elsewhere(tmp_path: Path) -> None:
    with fleets.running(tmp_path, lease_seconds=wire.MIN_LEASE_SECONDS, heartbeat_seconds=1.0) as fleet:
        doomed = fleet.install()
        fleet.start_daemon()
        job = fleet.submit(["sleep", "1000"], retry={"max_attempts": 1})
        pid = fleet.wait_state(job, State.RUNNING).tasks[0].pid
        assert pid
        fleet.client.remove_agent(doomed)
        view = fleet.wait_final(job)
        assert (view.job.state, view.job.reason) == (State.LOST, Reason.AGENT_REMOVED)
        fleets.wait_for(lambda: not fleets.is_alive(pid), "the lease ends what the removed agent ran")
        fleets.wait_for(lambda: fleet.problems() & {"AGENT_UNKNOWN"}, "the daemon says so")
        assert fleet.is_running("default")

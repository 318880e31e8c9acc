"""Checkpoints of tasks that run in slots, where their daemon cannot see; and the host that is gone at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from agentina.protocol.states import State
from tests.acceptance import fleet as fleets
from tests.fakes import interrupted_cli
from tests.vm import container, host, lab

LAB: Final = lab.IMPATIENT
_RECORDING: Final = "/usr/local/lib/recording.jsonl"
#: The same commit on every host.
_REPOSITORY: Final = """
export GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
git init -q /srv/app && cd /srv/app && touch gone.txt kept.txt && git add -A
git -c user.name=t -c user.email=t@example.com commit -q -m first && chmod -R a+rX /srv/app
"""
#: Has one checkpoint, and stays in the middle of the next; says in the end what it was given.
_PACKS: Final = """
[ -z "$AGENTINA_RESUMED_FROM" ] || { cat log; ls; exit 0; }
echo whole > log && agentina task checkpoint && echo half > log && touch late
agentina task checkpoint & until pkill -STOP -f packer[.]py; do :; done; echo stopped; sleep 100000
"""
#: Has one checkpoint, and another when it is told to.
_TWICE: Final = """
[ -z "$AGENTINA_RESUMED_FROM" ] || { cat log; exit 0; }
trap 'echo second >> log; agentina task checkpoint' USR1
echo first > log; agentina task checkpoint
while :; do sleep 0.1; done
"""
_SECOND: Final = "pkill -USR1 -f 'trap .echo secon[d]'"
#: What is left of a checkpoint that was not completed.
_LEFT: Final = (
    "find /var/lib/agentina/default /var/lib/agentina/.slots"
    " -name '*.tmp' -o -name checkpoint.git -o -name companion -o -name 'pack-*'"
)
#: Ends the packer when it has begun with a large file.
_KILLS: Final = """
truncate -s 300M big
agentina task checkpoint 2>&1 &
until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q /big; do :; done
pkill -KILL -f packer[.]py
wait
"""


@pytest.fixture(scope="module")
def new_agent(
    new_container: Callable[..., container.Container], run_lab: lab.Lab
) -> Callable[[str], container.Container]:
    def make(name: str) -> container.Container:
        made = new_container(name, forgets=True)
        made.put(interrupted_cli.program(_RECORDING).encode(), "/usr/local/bin/claude", mode=0o755)
        made.put(interrupted_cli.RECORDING, _RECORDING)
        made.run(f"{_REPOSITORY}\nsync")
        run_lab.activate(made, "default", "--max-concurrent-tasks 2")
        run_lab.wait_online(made)
        return made

    return make


@pytest.fixture(scope="module")
def first(new_agent: Callable[[str], container.Container]) -> container.Container:
    return new_agent("first")


def submit(run_lab: lab.Lab, **keys: Any) -> str:
    """A job of an AI agent's that has begun its session and goes on for ever."""
    job = {
        "name": "moves", "runner": "claude-code", "payload": {"prompt": "fix the bug"},
        "workspace": {"git": "/srv/app"}, "resources": {"memory": "512MiB"}, **keys,
    }  # fmt: skip
    made = run_lab.fleet.client.submit_job(job).id

    def session() -> bool:
        return any(task.run is not None and task.run.session_id for task in run_lab.fleet.job(made).tasks)

    fleets.wait_for(session, "the agent has a session")
    return made


def wait_told(run_lab: lab.Lab, job: str, words: str) -> None:
    fleets.wait_for(lambda: any(words in line.text for line in run_lab.fleet.job(job).events), words)


def test_one_is_taken_when_somebody_wants_it(first: container.Container, run_lab: lab.Lab) -> None:
    job = submit(run_lab, checkpoint={"every": 0})
    run_lab.fleet.answer("job", "checkpoint", job)
    wait_told(run_lab, job, "checkpoint-000001.tar is stored")
    run_lab.fleet.answer("job", "checkpoint", job)
    wait_told(run_lab, job, "nothing has changed since the last checkpoint")
    assert "companion" not in first.run("ls /var/lib/agentina/.slots/*/task/orders")
    run_lab.fleet.answer("job", "cancel", job)
    assert run_lab.fleet.wait_final(job).job.state is State.CANCELED


@pytest.mark.parametrize(("script", "said"), [
    ("echo work > work.txt; agentina task checkpoint", "checkpoint-000001.tar is taken"),
    # The task can end its packer, and has itself to blame; it goes on all the same.
    (
        _KILLS,
        "its packer ended before it had sent everything",
    ),
    # One that is stopped is left behind, and does not keep the task from ending.
    (
        "agentina task checkpoint & until pkill -STOP -f packer[.]py; do :; done; echo stopped",
        "stopped",
    ),
])  # fmt: skip
def test_a_task_wants_one(first: container.Container, run_lab: lab.Lab, script: str, said: str) -> None:
    job = run_lab.fleet.submit(["sh", "-c", script], checkpoint={"every": 0})
    view = run_lab.fleet.wait_final(job)
    output = run_lab.fleet.output(job).decode()
    assert view.job.state in {State.SUCCEEDED, State.FAILED}, view
    assert said in output, (view, output)
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert (outcome.usage.wall_seconds or 0.0) < host.PATIENCE, outcome


def begin_to_pack(first: container.Container, run_lab: lab.Lab) -> str:
    """A job that has one checkpoint, and is in the middle of the next; no other has left anything."""
    job = run_lab.fleet.submit_script(
        _PACKS, checkpoint={"every": 0}, retry={"max_attempts": 2, "backoff": 0}, limits={"grace": 1}
    )
    fleets.wait_for(lambda: b"stopped" in run_lab.fleet.output(job), "the second is packed")
    wait_told(run_lab, job, "checkpoint-000001.tar is stored")
    found = first.wait(f"{_LEFT} | grep tmp", "a part of it is on disk")
    assert f"{job}.1/checkpoints/.checkpoint-000002.tar.tmp" in found
    return job


def test_daemon_is_killed_while_one_is_packed(first: container.Container, run_lab: lab.Lab) -> None:
    """The next daemon takes another, and what was left is gone."""
    job = begin_to_pack(first, run_lab)
    first.run("systemctl kill --kill-whom=main -s KILL agentina@default")
    run_lab.fleet.answer("job", "checkpoint", job)
    wait_told(run_lab, job, "checkpoint-000002.tar is stored")
    first.wait(f'test -z "$({_LEFT})"', "nothing is left")
    run_lab.fleet.answer("job", "cancel", job)
    assert run_lab.fleet.wait_final(job).job.state is State.CANCELED


def test_power_is_cut_while_one_is_packed(first: container.Container, run_lab: lab.Lab) -> None:
    """The job goes on from the one before, and what was left is gone."""
    job = begin_to_pack(first, run_lab)
    first.power_cut()
    check_goes_on(first, run_lab, job, b"whole\nlog\n")


def check_goes_on(first: container.Container, run_lab: lab.Lab, job: str, log: bytes) -> None:
    """After a power cut the job has what was stored, and nothing else is left."""
    view = run_lab.fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, view
    assert [task.state for task in view.tasks] == [State.LOST, State.SUCCEEDED]
    assert run_lab.fleet.output(job) == log
    first.wait(f'test -z "$({_LEFT})" && test -z "$(ls /var/lib/agentina/default/tasks)"', "nothing is left")


@pytest.mark.parametrize("is_stored", [False, True], ids=["not yet sent", "stored a moment ago"])
def test_power_is_cut_between_a_checkpoint_and_its_record(
    first: container.Container, run_lab: lab.Lab, *, is_stored: bool
) -> None:
    """One that was packed, and not sent, is gone with the task; one that was stored counts, whoever has heard of it."""
    job = run_lab.fleet.submit_script(
        _TWICE, checkpoint={"every": 0}, retry={"max_attempts": 2, "backoff": 0}, limits={"grace": 1}
    )
    wait_told(run_lab, job, "checkpoint-000001.tar is stored")
    if is_stored:
        first.run(_SECOND)
        wait_told(run_lab, job, "checkpoint-000002.tar is stored")
        first.power_cut()
    else:
        first.set_network(up=False)
        first.run(_SECOND)
        first.wait(f"ls /var/lib/agentina/default/tasks/{job}.1/checkpoints/checkpoint-000002.tar", "it is packed")
        first.power_cut()
        first.set_network(up=True)
    check_goes_on(first, run_lab, job, b"first\nsecond\n" if is_stored else b"first\n")


def test_a_host_that_is_gone_at_once_has_left_a_checkpoint(
    first: container.Container, new_agent: Callable[[str], container.Container], run_lab: lab.Lab
) -> None:
    """Its power goes: the other host has the job, in a slot of its own, with the files and the session."""
    verify = {"script": 'test "$(cat notes.txt)" = "$(printf "first\\nsecond")"; test ! -e gone.txt; git fsck'}
    job = submit(run_lab, checkpoint={"every": 1}, verify=verify, retry={"max_attempts": 2, "backoff": 0})
    wait_told(run_lab, job, "checkpoint-000001.tar is stored")
    first.cut()
    new_agent("second")
    view = run_lab.fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, (view, run_lab.fleet.output(job).decode())
    assert [task.state for task in view.tasks] == [State.LOST, State.SUCCEEDED]
    assert view.tasks[0].agent != view.tasks[1].agent
    told = " ".join(line.text for line in view.events)
    assert f"of {job}.1" in told.partition("goes on from checkpoint-")[2], told

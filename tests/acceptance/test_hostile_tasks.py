"""Tasks that misbehave, through the whole stack: bounded, ended, reported, and their secrets kept."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import procfs

SECRET = "s3cret-Of-The-Acceptance-Test"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path_factory.mktemp("hostile")) as started:
        started.install("default", "--max-concurrent-tasks", "4")
        started.start_daemon()
        yield started


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


def wait_lines(marks: Path, count: int = 1) -> list[str]:
    def found() -> list[str]:
        lines = marks.read_text().splitlines() if marks.exists() else []
        return lines if len(lines) >= count else []

    lines: list[str] = fleets.wait_for(found, f"{count} lines in {marks}")
    return lines


def test_flood_of_output_ends_at_the_limit(fleet: fleets.Fleet) -> None:
    job = fleet.submit(["yes", "flood"], limits={"output": "1MiB"})
    view = fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.FAILED, Reason.OUTPUT_LIMIT)
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert outcome.output_truncated
    assert outcome.output_bytes == 1 << 20
    assert fleet.output(job) == (b"flood\n" * 200_000)[: 1 << 20]
    fleets.wait_for(lambda: not (fleet.status() or {"tasks": 1})["tasks"], "the host lets go of it")


def test_deaf_to_sigterm_and_canceled(fleet: fleets.Fleet) -> None:
    job = fleet.submit_script(
        "trap '' TERM; echo deaf; while :; do sleep 0.1 || :; done", limits={"grace": 0.5}, retry={"max_attempts": 3}
    )
    fleets.wait_for(lambda: fleet.output(job) == b"deaf\n", "it is deaf")
    pid = fleet.wait_state(job, State.RUNNING).tasks[0].pid
    assert pid
    fleet.client.cancel_job(job, reason="enough")
    view = fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.CANCELED, Reason.CANCELED_BY_OPERATOR)
    assert "enough" in view.job.detail
    fleets.wait_for(lambda: not fleets.is_alive(pid), "its process is gone")
    assert len(view.tasks) == 1


def test_grandchildren_that_hold_the_output_are_ended(fleet: fleets.Fleet, marks: Path) -> None:
    marks.touch()
    script = f"""
setsid sh -c 'echo $$ >> {marks}; trap "" TERM HUP; while :; do sleep 0.1; done' &
(setsid setsid sh -c 'echo $$ >> {marks}; exec sleep 1000' &)
until [ "$(wc -l < {marks})" = 2 ]; do sleep 0.02; done
echo parent ends
"""
    job = fleet.submit_script(script)
    view = fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED
    assert fleet.output(job) == b"parent ends\n"
    assert not [pid for pid in wait_lines(marks, 2) if fleets.is_alive(int(pid))]


def test_deleting_its_own_log_loses_no_output(fleet: fleets.Fleet) -> None:
    script = 'echo first; rm -f "$(readlink /proc/$$/fd/1)"; echo second; rm -rf ../job.json ../lease; echo third'
    job = fleet.submit_script(script)
    view = fleet.wait_final(job)
    assert view.job.state is State.SUCCEEDED, view.job
    assert fleet.output(job) == b"first\nsecond\nthird\n"


def test_bytes_arrive_as_they_are(fleet: fleets.Fleet) -> None:
    program = "import os; os.write(1, bytes(range(256)) * 5000)"
    job = fleet.submit(["python3", "-c", program])
    fleet.wait_final(job)
    assert fleet.output(job) == bytes(range(256)) * 5000
    command = [*fleets.AGENTINA, "job", "logs", job]
    shown = subprocess.run(command, env=fleet.environment(), capture_output=True, check=True).stdout
    assert shown == bytes(range(256)) * 5000


def test_time_limit(fleet: fleets.Fleet) -> None:
    job = fleet.submit_script("echo begun; sleep 1000", limits={"timeout": 3, "grace": 0.2})
    view = fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.TIMED_OUT, Reason.TIME_LIMIT)
    assert fleet.output(job) == b"begun\n"


def test_memory_limit(fleet: fleets.Fleet) -> None:
    program = "import time; kept = [bytes(1 << 20) + b'x' * (1 << 20) for _ in range(100)]; time.sleep(100)"
    job = fleet.submit(["python3", "-c", program], resources={"memory": "64MiB"})
    view = fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.OUT_OF_MEMORY, Reason.MEMORY_LIMIT)
    assert view.tasks[0].outcome is not None
    assert view.tasks[0].outcome.oom == "full"


def test_too_many_processes(fleet: fleets.Fleet) -> None:
    # Two dozen sleepers against a limit of ten: enough to cross it, harmless to everybody else.
    job = fleet.submit_script("for i in $(seq 24); do sleep 100 & done; wait", resources={"pids": 10})
    view = fleet.wait_final(job)
    assert view.job.state is State.FAILED
    # With a pids cgroup the shell's own fork fails; without, the supervisor sees it.
    assert view.job.reason in {Reason.PROCESS_LIMIT, Reason.EXIT_NONZERO}


def test_secrets_are_in_no_output_log_answer_or_process_list(fleet: fleets.Fleet, marks: Path) -> None:
    gate = marks.with_name("gate")
    # What comes through the pipe of one printf crosses the pieces the output is sent in.
    script = f"""
echo "plain $TOKEN_OF_MINE"; printf '%s' "${{TOKEN_OF_MINE%%Acc*}}"; sleep 0.3; printf 'Acceptance-Test\\n'
echo "named $DB_PASSWORD"; echo on > {marks}; until [ -e {gate} ]; do sleep 0.02; done; exit 3
"""
    environment = {"TOKEN_OF_MINE": {"secret": SECRET}, "DB_PASSWORD": SECRET + "2"}
    job = fleet.submit_script(script, environment=environment)
    wait_lines(marks)
    arguments = b"\n".join(procfs.command_lines().values())
    shown = [fleet.answer("status", "--json"), fleet.answer("job", "show", job)]
    gate.touch()
    fleet.wait_final(job)
    stars = b"*" * len(SECRET)
    assert fleet.output(job) == b"plain %b\n%b\nnamed %b*\n" % (stars, stars, stars)
    shown += [fleet.answer("job", "show", job, "--json"), fleet.answer("job", "list", "--json")]
    shown += [fleet.answer("audit", "list", "--json"), fleet.log("default"), fleet.log("control-plane")]
    shown += [fleet.answer("logs"), fleet.run("agent", "list", "--json").stdout]
    assert SECRET.encode() not in arguments
    assert not [text for text in shown if SECRET in text]


def test_failed_tasks_kept_for_a_look_hold_no_secret_environment(fleet: fleets.Fleet) -> None:
    job = fleet.submit_script("exit 3", environment={"API_KEY": {"secret": SECRET + "-kept"}})
    fleet.wait_final(job)
    kept = fleet.layout.instance("default").state / "tasks-kept" / f"{job}.1"
    fleets.wait_for(kept.exists, "it is kept for a look")
    assert not [path for path in kept.rglob("*") if path.is_file() and (SECRET + "-kept").encode() in path.read_bytes()]


def test_long_script(fleet: fleets.Fleet) -> None:
    script = "# " + "é" * 100_000 + "\n" + "# x\n" * 15_000 + "echo ${#0}; false; echo never"
    view = fleet.wait_final(job := fleet.submit_script(script))
    assert (view.job.state, view.job.reason) == (State.FAILED, Reason.EXIT_NONZERO), view.job
    assert fleet.output(job) == b"7\n"


def test_workspace_is_a_trap(fleet: fleets.Fleet, tmp_path: Path) -> None:
    """Unreadable directories, links to outside and odd names: the rest is collected, outside stays, all is deleted."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    script = f"""
mkdir -p deep/er; ln -s {outside} left-link; ln -s / left-root; mkfifo left-pipe
echo good > left-good; echo odd > "left-$(printf 'a\\nb')"; chmod 0 deep
"""
    job = fleet.submit_script(script, artifacts=["left-*"])
    view = fleet.wait_final(job)
    names = [artifact.name for artifact in view.artifacts]
    assert "left-good" in names
    assert not [name for name in names if name in {"left-link", "left-pipe"} or name.startswith("left-root")]
    assert outside.read_text() == "mine"
    directory = fleet.layout.instance("default").tasks / f"{job}.1"
    fleets.wait_for(lambda: not directory.exists(), "its directory is deleted")


def test_own_supervisor_killed(fleet: fleets.Fleet, marks: Path) -> None:
    script = f'trap "" TERM; echo $$ > {marks}; kill -9 $PPID; while :; do sleep 0.1; done'
    job = fleet.submit_script(script, retry={"max_attempts": 1})
    view = fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.LOST, Reason.SUPERVISOR_DIED)
    pid = int(wait_lines(marks)[0])
    fleets.wait_for(lambda: not fleets.is_alive(pid), "what it left is ended")


def test_nothing_is_left_of_them(fleet: fleets.Fleet) -> None:
    """Last of this module: no task directory and no process outlives its task."""
    tasks = fleet.layout.instance("default").tasks
    fleets.wait_for(lambda: not [path for path in tasks.iterdir() if re.match("job_", path.name)], "no task is left")
    assert (fleet.status() or {})["healthy"]

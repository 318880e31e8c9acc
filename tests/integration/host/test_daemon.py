"""The daemon as a real process against a control plane on a real socket: what it must survive and what it must say."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agentina.executors import process
from agentina.host import daemon as daemons
from agentina.protocol import signing, wire
from agentina.protocol.states import Reason, State
from agentina.system import files, paths
from tests.fakes import cloud_metadata, control, deadlines, logind
from tests.fakes.control import Fault
from tests.integration.host.daemons import DaemonProcess


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def until_go(root: Path) -> str:
    """What a job does until the test has seen what it wanted to see, and makes the file ``go``."""
    return f"until [ -e {root}/go ]; do sleep 0.05; done"


async def end_unseen(daemon: DaemonProcess, plane: control.FakeControl, *tasks: control.Task) -> None:
    """Kill the daemon once they run, and let them end while none is there."""
    await plane.until(lambda: all(task.pids for task in tasks))
    await daemon.kill()
    (daemon.root / "go").touch()
    await plane.until(lambda: all((daemon.instance.tasks / task.id / "result.json").exists() for task in tasks))


def marks(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def test_probe_is_a_task_over_its_limit_that_nobody_hears_of(
    daemon: DaemonProcess, plane: control.FakeControl
) -> None:
    await plane.until(lambda: plane.session > 0)
    (daemon.instance.tasks / "probe.of-a-daemon-that-was-killed").mkdir(parents=True)
    await daemon.kill()
    await daemon.start()
    await plane.until(lambda: plane.session > 1)
    status = await daemon.ask("probe")
    while status.probe is None or status.probe.running:
        status = await daemon.ask()
    assert status.probe.outcome is not None, status.probe
    assert (status.probe.outcome.state, status.probe.outcome.reason) == (State.OUT_OF_MEMORY, Reason.MEMORY_LIMIT)
    assert status.tasks == []
    assert plane.tasks == {}
    await plane.until(lambda: not list(daemon.instance.tasks.glob("probe.*")))


async def test_an_answer_to_a_task_is_fetched_at_once(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    task = plane.submit("sleep 600")
    await plane.until(lambda: "running" in task.kinds)
    plane.directives = msgspec.structs.replace(plane.directives, heartbeat_seconds=3000.0, lease_seconds=9000.0)
    beats = len(plane.heartbeats)
    # Its answer says how far away the next one is.
    await plane.until(lambda: len(plane.heartbeats) > beats)
    beats = len(plane.heartbeats)
    plane.answer(task, "question:1", "main")
    await plane.until(lambda: len(plane.heartbeats) > beats)


async def test_settings_of_the_control_plane_hold_over_restarts(
    daemon: DaemonProcess, plane: control.FakeControl
) -> None:
    await plane.until(lambda: plane.polls[-1].slots == 4 if plane.polls else False)
    order = wire.ConfigurationOrder(
        id="roll_1.1", agent_id=control.AGENT, action="apply", version="cfg-1", settings={"max_concurrent_tasks": 2}
    )
    plane.directives = msgspec.structs.replace(
        plane.directives, configuration=plane.key.sign_struct("configuration", order)
    )

    def reported() -> str:
        report = plane.heartbeats[-1].configuration_report if plane.heartbeats else None
        return report.state if report is not None else ""

    await plane.until(lambda: reported() == "promoted" and plane.heartbeats[-1].configuration == "cfg-1")
    await plane.until(lambda: plane.polls[-1].slots == 2)
    status = await daemon.ask()
    assert (status.configuration, status.max_concurrent_tasks) == ("cfg-1", 2)
    sessions, beats = plane.session, len(plane.heartbeats)
    await daemon.kill()
    await daemon.start()
    await plane.until(lambda: plane.session > sessions and len(plane.heartbeats) > beats)
    assert (plane.heartbeats[-1].configuration, reported()) == ("cfg-1", "promoted")
    await plane.until(lambda: plane.polls[-1].session == plane.session)
    assert plane.polls[-1].slots == 2


async def test_job_runs_and_is_forgotten(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    task = plane.submit("echo hello; echo $API_TOKEN", environment={"API_TOKEN": "sesame-open"})
    await plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason, task.outcome.exit_code) == (State.SUCCEEDED, Reason.EXIT_ZERO, 0)
    assert bytes(task.output) == b"hello\n***********\n"
    assert task.outcome.output_bytes == len(task.output)
    assert task.kinds == ["accepted", "running", "finishing", "finished"]
    await plane.until(lambda: not any(daemon.instance.tasks.iterdir()))
    assert "sesame-open" not in daemon.log.read_text()


async def test_directory_of_a_former_task_is_as_good_as_new(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    """It is used again after a task that left nothing, and no task finds anything of another's."""

    async def run(leaving: str) -> int:
        task = plane.submit(f"ls -A .. . > {root}/seen; ls -di .. >> {root}/seen; {leaving}")
        await plane.until_ended(task)
        *names, number, _ = (root / "seen").read_text().split()
        assert set(names) - {"lease"} == {".:", "..:", "output.log", "supervisor", "workspace"}
        await plane.until(lambda: not list(daemon.instance.tasks.iterdir()))
        return int(number)

    is_used_again = False
    kept: set[int] = set()
    async with asyncio.timeout(deadlines.HANG):
        while not is_used_again:
            is_used_again = await run("true") in kept
            with os.scandir(daemon.instance.state / "trash") as trash:
                kept = {each.inode() for each in trash}
    for leaving in ("touch left", "touch ../over", "mkdir -m 700 .hidden", "chmod 755 .", "true"):
        await run(leaving)


async def test_live_output_stops_at_the_limit(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    # In a file of the job's own its supervisor, which would end it and cut the file, does not see the output.
    script = "rm ../output.log; head -c 100000 /dev/zero > ../output.log; exec sleep 1000"
    task = plane.submit(script, limits={"output": 1000}, artifacts=["none"])
    await plane.until(lambda: len(task.output) >= 1000)
    written = daemon.instance.tasks / task.id / "output.log"
    await plane.until(lambda: written.stat().st_size == 100_000)
    beats = len(plane.heartbeats)
    await plane.until(lambda: len(plane.heartbeats) > beats + 1)
    assert len(task.output) == 1000
    plane.cancel(task)
    await plane.until_ended(task)
    assert len(task.output) == 1000


async def test_output_arrives_while_the_job_runs(daemon: DaemonProcess, plane: control.FakeControl, root: Path) -> None:
    task = plane.submit(f"echo first; {until_go(root)}; echo second")
    await plane.until(lambda: bytes(task.output) == b"first\n")
    assert task.outcome is None
    (root / "go").touch()
    await plane.until_ended(task)
    assert bytes(task.output) == b"first\nsecond\n"


async def test_many_jobs_with_more_than_the_slots(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    tasks = [plane.submit(f"echo {number}") for number in range(40)]
    await plane.until_ended(*tasks)
    assert [bytes(task.output) for task in tasks] == [f"{number}\n".encode() for number in range(40)]
    assert max(poll.slots for poll in plane.polls) <= 4


async def test_artifacts_arrive_whole(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    plane.faults = [Fault("drop", "/artifacts/", 2), Fault(500, "/artifacts", 1)]
    task = plane.submit("head -c 2500000 /dev/urandom > big; echo x > small", artifacts=["big", "small"])
    await plane.until_ended(task)
    assert task.outcome is not None
    assert {artifact.name for artifact in task.outcome.artifacts} == {"big", "small"}
    for info, content in task.artifacts.values():
        assert control._is_whole(info, content)


async def test_cancel_ends_the_process(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    task = plane.submit("sleep 1000", limits={"grace": 1})
    await plane.until(lambda: bool(task.pids))
    plane.cancel(task)
    await plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason) == (State.CANCELED, Reason.CANCELED_BY_OPERATOR)
    assert not is_alive(task.pids[0])


async def test_running_task_keeps_its_process_when_the_daemon_is_killed(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    task = plane.submit(f"echo once >> {root}/marks; echo before; {until_go(root)}; echo after")
    await plane.until(lambda: bool(task.pids))
    await daemon.kill()
    await daemon.start()
    await plane.until(lambda: len(plane.sessions) == 2)
    (root / "go").touch()
    await plane.until_ended(task)
    assert len(set(task.pids)) == 1
    assert marks(root / "marks") == ["once"]
    assert bytes(task.output) == b"before\nafter\n"
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED


async def test_nothing_runs_any_more_when_a_task_is_reported_lost(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    task = plane.submit(f"setsid sleep 1000 & echo $! > {root}/left.tmp; mv {root}/left.tmp {root}/left; wait")
    await plane.until(lambda: bool(task.pids) and (root / "left").exists())
    left = int((root / "left").read_text())
    (supervisor,) = [process.read_fence(path).pid for path in daemon.instance.tasks.iterdir()]
    os.kill(supervisor, signal.SIGKILL)
    await plane.until_ended(task)
    assert state_of(left) in {"", "Z"}  # Z: ended, and not yet collected by its new parent
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason) == (State.LOST, Reason.SUPERVISOR_DIED)


async def test_task_that_stops_its_supervisor_is_lost_and_its_slot_free(
    daemon: DaemonProcess, plane: control.FakeControl
) -> None:
    """At once, so that in most runs its start was not told yet."""
    tasks = [plane.submit("kill -STOP $PPID; sleep 1000", limits={"timeout": 1}) for _ in range(4)]
    await plane.until_ended(*tasks)
    outcomes = [task.outcome for task in tasks]
    assert {outcome and (outcome.state, outcome.reason) for outcome in outcomes} == {
        (State.LOST, Reason.SUPERVISOR_DIED)
    }
    after = plane.submit("echo on")
    await plane.until_ended(after)
    assert bytes(after.output) == b"on\n"


async def test_home_and_temporary_files_are_apart_from_the_work(
    daemon: DaemonProcess, plane: control.FakeControl
) -> None:
    script = 'touch ~/.config && file=$(mktemp) && ls -A && echo "$HOME $file $PWD"'
    collected, plain = plane.submit(script, artifacts=["none*"]), plane.submit(script)
    await plane.until_ended(collected, plain)
    home, file, work = bytes(collected.output).decode().split()  # nothing else: the workspace is empty
    parent = Path(work).parent
    assert Path(home) == parent / "home"
    assert Path(file).parent == parent / "home"
    # Nothing is collected from a job without artifacts: one directory is enough.
    *found, home, file, work = bytes(plain.output).decode().split()
    assert set(found) == {".config", Path(file).name}
    assert home == work == str(Path(file).parent)


async def test_task_that_ends_while_no_daemon_is_there(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    task = plane.submit(f"{until_go(root)}; echo done; exit 3")
    await end_unseen(daemon, plane, task)
    await daemon.start()
    await plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.reason, task.outcome.exit_code) == (Reason.EXIT_NONZERO, 3)
    assert bytes(task.output) == b"done\n"


@pytest.mark.parametrize("stopped", ["none", "host-shutdown"])
async def test_files_of_another_boot_are_not_trusted(
    stopped: str, daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    """A result is durable before what the task left is: a power cut between leaves files that are empty."""
    leaves = plane.submit(f"{until_go(root)}; echo x > left", artifacts=["left"])
    talks = plane.submit(f"{until_go(root)}; echo x")
    await end_unseen(daemon, plane, leaves, talks)
    await asyncio.to_thread(_change_results, root, boot_id="another", stopped=stopped)
    await daemon.start()
    await plane.until_ended(leaves, talks)
    assert leaves.outcome is not None
    assert talks.outcome is not None
    orderly = stopped == "host-shutdown"
    assert (leaves.outcome.state, bool(leaves.artifacts)) == (State.LOST, orderly)
    assert talks.outcome.state is (State.LOST if orderly else State.SUCCEEDED)
    assert bytes(talks.output) == b"x\n"


def _change_results(root: Path, **changes: str) -> None:
    for path in root.rglob("result.json"):
        path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


async def test_nothing_is_lost_or_done_twice_over_many_kills(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    chance = random.Random(7)
    tasks = [
        plane.submit(f"echo {number} >> {root}/marks; echo {number}; sleep 0.0{number % 7}") for number in range(60)
    ]
    for _ in range(20):
        await asyncio.sleep(chance.uniform(0.15, 0.5))
        await daemon.kill()
        await daemon.start()
    await plane.until(lambda: not plane.queue and all(task.outcome is not None for task in plane.tasks.values()))
    assert sorted(marks(root / "marks"), key=int) == [str(number) for number in range(60)]
    assert [bytes(task.output) for task in tasks] == [f"{number}\n".encode() for number in range(60)]
    assert {task.outcome.state for task in tasks if task.outcome} == {State.SUCCEEDED}
    assert all(task.kinds.count("finished") == 1 for task in tasks)


@pytest.mark.parametrize("kind", ["drop", "refuse", "garbage", "truncate", "slow", 500, 429, 404])
async def test_faults_delay_but_lose_nothing(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path, kind: str | int
) -> None:
    await plane.until(lambda: bool(plane.polls))
    plane.faults = [Fault(kind, path, 2) for path in ("poll", "reports", "output", "heartbeat", "session")]
    tasks = [plane.submit(f"echo {number} >> {root}/marks; echo {number}") for number in range(6)]
    await plane.until_ended(*tasks)
    assert sorted(marks(root / "marks")) == [str(number) for number in range(6)]
    assert [bytes(task.output) for task in tasks] == [f"{number}\n".encode() for number in range(6)]
    assert all(task.kinds == ["accepted", "running", "finishing", "finished"] for task in tasks)


async def test_control_plane_away_while_tasks_end(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    task = plane.submit(f"{until_go(root)}; echo late")
    await plane.until(lambda: bool(task.pids))
    await plane.go_away()
    (root / "go").touch()
    await daemon.until(lambda status: status.state == "offline" and bool(status.reports_waiting))
    await plane.listen()
    await plane.until_ended(task)
    assert bytes(task.output) == b"late\n"
    await plane.until(lambda: bool(plane.heartbeats))
    assert len(plane.sessions) == 1


async def test_superseded_session_is_opened_again(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    task = plane.submit(f"{until_go(root)}; echo x")
    await plane.until(lambda: bool(task.pids))
    plane.session += 10
    plane.wake()
    await plane.until(lambda: len(plane.sessions) == 2)
    (root / "go").touch()
    await plane.until_ended(task)
    assert len(plane.sessions) == 2
    assert task.id in {held.task_id for held in plane.sessions[1].tasks}
    assert task.kinds.count("finished") == 1


async def test_foreign_and_altered_assignments_are_refused(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    await plane.until(lambda: bool(plane.polls))
    stranger = signing.SigningKey.generate()
    plane.tamper = lambda signed: stranger.sign("assignment", signed.payload.encode())
    forged = plane.submit("true")
    await plane.until_ended(forged)
    plane.tamper = lambda signed: msgspec.structs.replace(signed, payload=signed.payload.replace("64", "65"))
    altered = plane.submit("true")
    await plane.until_ended(altered)
    plane.tamper = lambda _: plane.assign(misaddressed, plane.polls[-1], agent_id="another")
    misaddressed = plane.submit("true")
    await plane.until_ended(misaddressed)
    plane.tamper = lambda _: plane.assign(replayed, plane.polls[-1], poll=1)
    replayed = plane.submit("true")
    await plane.until_ended(replayed)
    for task in (forged, altered, misaddressed, replayed):
        assert task.outcome is not None
        assert (task.outcome.state, task.outcome.reason) == (State.REFUSED, Reason.SIGNATURE)
        assert task.outcome.error_code == "SIGNATURE_INVALID"
        assert task.kinds == ["finished"]


async def test_policy_refuses_and_is_read_again_on_sighup(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    await plane.until(lambda: bool(plane.polls))
    (root / "etc/agentina/policy.yaml").write_text("max_memory: 32MiB\n")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    await plane.until(lambda: "policy-loaded" in daemon.log.read_text())
    task = plane.submit("true")
    await plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.reason, task.outcome.error_code) == (Reason.POLICY, "POLICY_REFUSED")
    assert "ceiling of 32 MiB" in task.outcome.detail


async def test_broken_policy_takes_no_work_and_says_so(root: Path, plane: control.FakeControl) -> None:
    plane.install(root)
    (root / "etc/agentina/policy.yaml").write_text("max_memori: 1\n")
    daemon = DaemonProcess(root)
    await daemon.start()
    await plane.until(lambda: bool(plane.polls))
    assert plane.polls[-1].slots == 0
    status = await daemon.ask()
    assert not status.healthy
    assert [problem.code for problem in status.problems] == ["INPUT_UNKNOWN_KEY"]
    assert "max_memory" in status.problems[0].message
    await daemon.kill(signal.SIGTERM)


async def test_job_that_meets_a_policy_broken_meanwhile_is_given_back(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    await plane.until(lambda: bool(plane.polls))
    assert plane.polls[-1].slots
    (root / "etc/agentina/policy.yaml").write_text("max_memori: 1\n")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    await plane.until(lambda: "policy-broken" in daemon.log.read_text())
    plane.crosses = True
    task = plane.submit("true")
    await plane.until(lambda: bool(task.kinds))
    assert task.kinds == ["returned"]
    assert "max_memori" in plane.reports[-1].detail
    (root / "etc/agentina/policy.yaml").unlink()
    daemon.process.send_signal(signal.SIGHUP)
    task.taken = False
    plane.queue.append(task)
    await plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED


async def test_job_that_meets_a_drain_is_given_back(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    await plane.until(lambda: bool(plane.polls))
    assert plane.polls[-1].slots
    await daemon.ask("drain")
    await plane.until(lambda: plane.polls[-1].slots == 0)
    plane.crosses = True
    task = plane.submit("true")
    await plane.until(lambda: bool(task.kinds))
    assert (task.kinds, plane.reports[-1].detail) == (["returned"], "drained on this host")


async def test_sigterm_ends_it_and_the_task_goes_on(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    task = plane.submit("sleep 1000")
    await plane.until(lambda: bool(task.pids))
    assert await daemon.kill(signal.SIGTERM) == 0
    assert is_alive(task.pids[0])
    await daemon.start()
    await plane.until(lambda: len(plane.sessions) == 2)
    plane.cancel(task)
    await plane.until_ended(task)


async def test_second_daemon_is_refused(daemon: DaemonProcess, plane: control.FakeControl, root: Path) -> None:
    await plane.until(lambda: bool(plane.sessions))
    second = DaemonProcess(root)
    second.log = root / "second.log"
    await second.start()
    assert second.process is not None
    assert await second.process.wait() == 1
    assert "DAEMON_RUNNING" in second.log.read_text()


async def test_damaged_records_are_set_aside_and_the_rest_goes_on(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    wait = until_go(root)
    good, torn, gone = plane.submit(f"{wait}; echo good"), plane.submit(f"{wait}; echo torn"), plane.submit(wait)
    await plane.until((daemon.instance.tasks / torn.id / "job.json").exists)
    await end_unseen(daemon, plane, good, torn, gone)
    shutil.rmtree(daemon.instance.tasks / gone.id)
    # job.json alone is recovered from the outbox.
    (daemon.instance.tasks / torn.id / "job.json").write_bytes(b"")
    await daemon.start()
    await plane.until_ended(good, torn, gone)
    assert bytes(good.output) == b"good\n"
    assert bytes(torn.output) == b"torn\n"
    assert gone.outcome is not None
    assert (gone.outcome.state, gone.outcome.reason) == (State.LOST, Reason.RECORD_DAMAGED)


async def test_damaged_outbox_is_set_aside_and_everything_said_again(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    task = plane.submit(f"while [ ! -e {root}/go ]; do sleep 0.05; done; echo x")
    await plane.until((daemon.instance.tasks / task.id / "job.json").exists)
    await daemon.kill()
    for path in daemon.instance.outbox.iterdir():
        path.write_bytes(b"damaged" * 1000)
    await daemon.start()
    await plane.until(lambda: len(plane.sessions) == 2)
    (root / "go").touch()
    await plane.until_ended(task)
    assert plane.sessions[0].stream != plane.sessions[1].stream
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED
    assert any(".damaged-" in path.name for path in daemon.instance.outbox.iterdir())
    assert "STATE_CORRUPT" in {problem.code for problem in (await daemon.ask()).problems}


async def test_adopted_task_without_a_copy_of_its_record_gets_one(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    """The daemon that accepted it ended within the second after which it writes that."""
    task = plane.submit(f"while [ ! -e {root}/go ]; do sleep 0.05; done; echo x")
    copy = daemon.instance.tasks / task.id / "job.json"
    await plane.until(copy.exists)
    await daemon.kill()
    copy.unlink()
    await daemon.start()
    await plane.until(copy.exists)
    (root / "go").touch()
    await plane.until_ended(task)


async def test_accepted_task_without_a_copy_of_its_record_gets_one_when_it_is_started_after_all(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    """The daemon that accepted it ended before the start."""
    task = plane.submit(f"{until_go(root)}; echo x")
    await end_unseen(daemon, plane, task)
    shutil.rmtree(daemon.instance.tasks / task.id)
    (daemon.instance.tasks / task.id).mkdir(mode=0o700)
    (root / "go").unlink()
    await daemon.start()
    await plane.until((daemon.instance.tasks / task.id / "job.json").exists)
    (root / "go").touch()
    await plane.until_ended(task)
    assert bytes(task.output) == b"x\n"


@pytest.mark.parametrize("days", [-1, 1])
async def test_clock_of_the_control_plane_a_day_off(root: Path, plane: control.FakeControl, days: int) -> None:
    plane.skew_ms = days * 86_400_000
    plane.install(root)
    identity_license = plane.license(expires_ms=plane.now_ms() + 3_600_000)
    (root / "var/lib/agentina/default/license").write_bytes(msgspec.json.encode(identity_license))
    daemon = DaemonProcess(root)
    await daemon.start()
    task = plane.submit("echo x")
    await plane.until_ended(task)
    plane.skew_ms = 0
    another = plane.submit("echo y")
    await plane.until(lambda: another.outcome is not None or "returned" in another.kinds)
    # By the new time the license is over in one of the cases, as far as this host knows.
    assert another.kinds == ["returned"] if days < 0 else bytes(another.output) == b"y\n"
    await daemon.kill(signal.SIGTERM)


async def test_removed_agent_keeps_running_tasks_and_shows_it(
    daemon: DaemonProcess, plane: control.FakeControl, root: Path
) -> None:
    from agentina import errors  # noqa: PLC0415

    task = plane.submit(until_go(root))
    await plane.until(lambda: bool(task.pids))
    plane.refusal = errors.AGENT_UNKNOWN()
    plane.wake()
    await daemon.until(lambda status: "AGENT_UNKNOWN" in {problem.code for problem in status.problems})
    assert is_alive(task.pids[0])
    (root / "go").touch()
    plane.refusal = None
    await plane.until_ended(task)


async def test_drain_is_kept_over_a_restart(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    await plane.until(lambda: bool(plane.polls))
    assert (await daemon.ask("drain")).state == "draining"
    await daemon.kill()
    polled = len(plane.polls)
    await daemon.start()
    await plane.until(lambda: len(plane.polls) > polled)
    assert plane.polls[-1].slots == 0
    task = plane.submit("true")
    assert (await daemon.ask("resume")).state in {"online", "offline"}
    await plane.until_ended(task)


async def test_drain_that_cannot_be_read_holds(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    """That somebody wanted no work here is known all the same."""
    await plane.until(lambda: bool(plane.polls))
    await daemon.kill()
    (daemon.instance.state / "drain").mkdir()
    polled = len(plane.polls)
    await daemon.start()
    await plane.until(lambda: len(plane.polls) > polled)
    assert plane.polls[-1].slots == 0
    status = await daemon.ask()
    assert status.state == "draining"
    assert "cannot be read" in status.state_reason


async def test_idle_daemon_is_small(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    await plane.until(lambda: bool(plane.heartbeats))
    assert daemon.process is not None
    assert resident_kib(daemon.process.pid) < 45 * 1024


# --- the end of the host --------------------------------------------------------------------------------------------


@pytest.fixture
async def leaving_daemon(
    root: Path, plane: control.FakeControl, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[DaemonProcess, cloud_metadata.Metadata, logind.Logind]]:
    """A daemon on a machine of a cloud, with a logind."""
    async with cloud_metadata.Metadata() as cloud, logind.Logind(root) as system:
        plane.install(root, cloud="gce", cloud_metadata=cloud.address)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", system.address)
        process = DaemonProcess(root)
        await process.start()
        yield process, cloud, system
        await process.kill(signal.SIGTERM)
        log = process.log.read_text()
        assert "agentina/host/" not in log, log


async def test_preemption_drains_and_is_told_here_and_there(
    leaving_daemon: tuple[DaemonProcess, cloud_metadata.Metadata, logind.Logind], plane: control.FakeControl, root: Path
) -> None:
    daemon, cloud, _ = leaving_daemon
    running = plane.submit(f"until [ -e {root}/go ]; do sleep 0.05; done")
    await plane.until(lambda: "running" in running.kinds)
    cloud.change(preempted=True)
    await plane.until(lambda: plane.heartbeats[-1].draining)
    assert plane.heartbeats[-1].drain_reason == "this host is being preempted by Google Compute Engine"
    status = await daemon.ask()
    assert (status.state, status.state_reason) == ("draining", plane.heartbeats[-1].drain_reason)
    plane.crosses = True
    late = plane.submit("true")
    await plane.until(lambda: "returned" in late.kinds)
    (root / "go").touch()
    await plane.until_ended(running)
    assert running.outcome is not None
    assert running.outcome.state is State.SUCCEEDED
    assert "running" not in late.kinds, "no new task is started"
    assert (await daemon.ask("resume")).state == "draining", "the cloud will not change its mind"


async def test_shutdown_gives_back_what_has_not_started_and_is_held_up_for_that(
    leaving_daemon: tuple[DaemonProcess, cloud_metadata.Metadata, logind.Logind], plane: control.FakeControl, root: Path
) -> None:
    daemon, _, system = leaving_daemon
    await plane.until(lambda: bool(plane.polls))
    async with asyncio.timeout(deadlines.HANG):
        while not system.is_held():  # noqa: ASYNC110 - a pipe's other end has no event
            await asyncio.sleep(0.01)
    # A workspace that takes its time: the repository's server answers nothing.
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1")
    port = silent.sockets[0].getsockname()[1]
    preparing = plane.submit("true", workspace={"git": f"http://127.0.0.1:{port}/repository.git"})
    await plane.until(lambda: "accepted" in preparing.kinds)
    await system.prepare(start=True)
    await plane.until(lambda: "returned" in preparing.kinds)
    await plane.until(lambda: plane.heartbeats[-1].draining)
    assert plane.heartbeats[-1].drain_reason == "this host is shutting down"
    async with asyncio.timeout(deadlines.HANG):
        while system.is_held():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)
    await system.prepare(start=False)
    await plane.until(lambda: not plane.heartbeats[-1].draining)
    again = plane.submit("echo again")
    await plane.until_ended(again)
    assert bytes(again.output) == b"again\n"
    silent.close()
    assert "work is taken again" in daemon.log.read_text()


def test_full_disk_keeps_no_daemon_from_its_lock(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    instance.state.mkdir(parents=True)
    instance.lock.symlink_to("/dev/full")
    with daemons._only_daemon(instance):
        assert files.is_locked(instance.lock)

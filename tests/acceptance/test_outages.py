"""The control plane away, the network between broken in every way: tasks go on, everything arrives once, later."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import proxy as proxies

#: Prints its number, line by line, and leaves a file; each start and end is a line outside of agentina's reach.
WORK = """
echo "start $NUMBER $(cut -d' ' -f1 /proc/uptime)" >> "$MARKS"
i=0
while [ $i -lt 40 ]; do echo "$NUMBER $i"; i=$((i+1)); sleep "$PAUSE"; done
head -c 300000 /dev/zero | tr '\\0' "$NUMBER" > left
echo "end $NUMBER $(cut -d' ' -f1 /proc/uptime)" >> "$MARKS"
"""


def submit(fleet: fleets.Fleet, number: int, *, pause: float = 0.02, **keys: object) -> str:
    environment = {"NUMBER": str(number), "MARKS": str(fleet.root / "marks"), "PAUSE": str(pause)}
    return fleet.submit_script(WORK, environment=environment, artifacts=["left"], resources={"memory": "16MiB"}, **keys)


def check_arrived_once(fleet: fleets.Fleet, jobs: dict[int, str], *, seconds: float = 60) -> None:
    """Each job succeeded in one attempt, with every byte of its output and its file, and ran once."""
    for number, job in jobs.items():
        view = fleet.wait_final(job, seconds=seconds)
        assert view.job.state is State.SUCCEEDED, view
        assert len(view.tasks) == 1
        assert fleet.output(job) == b"".join(b"%d %d\n" % (number, line) for line in range(40))
        left: list[bytes] = []
        fleet.client.read_artifact(job, "left", left.append)
        assert b"".join(left) == str(number).encode() * 300_000
        assert len([event for event in view.events if event.state is State.SUCCEEDED]) == 1
    words = [line.split()[:2] for line in (fleet.root / "marks").read_text().splitlines()]
    assert sorted(words) == sorted([word, str(number)] for number in jobs for word in ("start", "end"))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path) as started:
        yield started


def test_tasks_go_on_and_everything_arrives_after_the_control_plane_was_away(fleet: fleets.Fleet) -> None:
    fleet.install("default", "--max-concurrent-tasks", "3")
    fleet.start_daemon()
    jobs = {number: submit(fleet, number) for number in range(3)}
    for job in jobs.values():
        fleet.wait_state(job, State.RUNNING)
    fleet.stop("control-plane")
    marks = fleet.root / "marks"
    fleets.wait_for(lambda: marks.exists() and marks.read_text().count("end") == 3, "the tasks end by themselves")
    status = fleets.wait_for(
        lambda: (found := fleet.status()) and found["state"] == "offline" and found["reports_waiting"] and found,
        "the daemon is offline and keeps its reports",
    )
    assert "CONTROL_PLANE_UNREACHABLE" in {problem["code"] for problem in status["problems"]}
    assert fleet.run("status").returncode == 1
    fleet.start_control_plane()
    check_arrived_once(fleet, jobs)
    fleets.wait_for(lambda: fleet.run("status").returncode == 0, "the host is healthy again")


@pytest.mark.parametrize("fault", [fault for fault in proxies.Fault if fault is not proxies.Fault.PASS])
def test_faults_of_the_network_lose_nothing(fleet: fleets.Fleet, fault: proxies.Fault) -> None:
    with proxies.before(fleet.port) as proxy:
        fleet.install("default", "--max-concurrent-tasks", "2", url=proxy.url)
        fleet.start_daemon()
        jobs = {1: submit(fleet, 1, pause=0.05)}
        fleet.wait_state(jobs[1], State.RUNNING)
        proxy.set(fault)
        # Comes while the fault lasts, and runs to its end in it when the fault lets assignments through.
        jobs[2] = submit(fleet, 2, pause=0)
        marks = fleet.root / "marks"
        fleets.wait_for(lambda: marks.exists() and "end 1" in marks.read_text(), "the running task goes on")
        time.sleep(1.0)  # let the daemon meet the fault a few more times
        attempts = proxy.accepted
        proxy.set(proxies.Fault.PASS)
        # A daemon that hammers would have come hundreds of times in these three seconds.
        assert attempts < 60
        check_arrived_once(fleet, jobs)


def test_task_ends_by_itself_before_it_is_given_away(tmp_path: Path) -> None:
    """A partition longer than the lease: the second attempt never overlaps the first, and late reports are void."""
    marks = tmp_path / "marks"
    script = (
        'exec 9>>"$MARKS"; trap \'echo "end $$ $(cut -d" " -f1 /proc/uptime)" >&9; exit 9\' TERM\n'
        'echo "start $$ $(cut -d" " -f1 /proc/uptime)" >&9\n'
        "[ -e $GATE ] || while :; do sleep 0.05; done\n"
        'echo "end $$ $(cut -d" " -f1 /proc/uptime)" >&9\n'
    )
    with (
        fleets.running(tmp_path, lease_seconds=wire.MIN_LEASE_SECONDS, heartbeat_seconds=1.0) as fleet,
        proxies.before(fleet.port) as proxy,
    ):
        fleet.install("default", url=proxy.url)
        fleet.start_daemon()
        environment = {"MARKS": str(marks), "GATE": str(tmp_path / "gate")}
        job = fleet.submit_script(
            script,
            environment=environment,
            limits={"grace": 1},
            retry={"max_attempts": 2, "on": ["lost"], "backoff": 0},
        )
        fleet.wait_state(job, State.RUNNING)
        fleet.install("second")
        proxy.set(proxies.Fault.BLACKHOLE)
        cut_at = uptime()
        fleets.wait_for(lambda: "end" in marks.read_text(), "the host ends the task by itself")
        ended_at = float(marks.read_text().split()[-1])
        assert ended_at - cut_at < wire.MIN_LEASE_SECONDS, "it outlived its lease"
        (tmp_path / "gate").touch()
        fleet.start_daemon("second")
        view = fleet.wait_final(job)
        proxy.set(proxies.Fault.PASS)
        assert view.job.state is State.SUCCEEDED
        assert [task.state for task in view.tasks] == [State.LOST, State.SUCCEEDED]
        assert view.tasks[0].reason is Reason.LEASE_EXPIRED
        lost_ms = view.tasks[0].ended_ms
        assert lost_ms is not None
        assert uptime() - (time.time() - lost_ms / 1000) > ended_at, "given away before it had ended"
        assert view.tasks[0].agent_id != view.tasks[1].agent_id
        check_no_overlap(marks)
        fleets.wait_for(lambda: not held(fleet, "default"), "the late reports are told and forgotten")
        after = fleet.job(job)
        assert after.job.state is State.SUCCEEDED
        assert [(task.state, task.reason) for task in after.tasks] == [(task.state, task.reason) for task in view.tasks]


def uptime() -> float:
    """Seconds since boot, as the jobs read them."""
    return float(Path("/proc/uptime").read_text().split()[0])


def held(fleet: fleets.Fleet, instance: str) -> bool:
    """Whether a daemon that is online still has tasks or reports."""
    status = fleet.status(instance)
    return not status or status["state"] != "online" or bool(status["tasks"] or status["reports_waiting"])


def check_no_overlap(marks: Path) -> None:
    """Starts and ends alternate, on the clock since boot: never two at once."""
    lines = [line.split() for line in marks.read_text().splitlines()]
    assert [word for word, _, _ in lines] == ["start", "end", "start", "end"], lines
    times = [float(at) for _, _, at in lines]
    assert times == sorted(times)


def test_several_instances_on_one_host(fleet: fleets.Fleet) -> None:
    names = ("default", "coder-2", "coder-3")
    ids = {fleet.install(name, "--role", name) for name in names}
    assert len(ids) == 3
    for name in names:
        fleet.start_daemon(name)
    jobs = {number: submit(fleet, number, role=name) for number, name in enumerate(names)}
    fleet.wait_state(jobs[1], State.RUNNING)
    fleet.kill("coder-2")
    fleet.start_daemon("coder-2")
    check_arrived_once(fleet, jobs)
    ran_on = {fleet.job(job).tasks[0].agent_id for job in jobs.values()}
    assert ran_on == ids
    second = fleet.run("daemon", "--instance", "coder-2")
    assert second.returncode == 6, "two daemons of one instance"
    assert "DAEMON_RUNNING" in second.stderr


def make_certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=agentina test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        capture_output=True, check=True,
    )  # fmt: skip
    return certificate, key


def test_tls_with_an_own_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with fleets.running(tmp_path, certificate=(certificate, key)) as fleet:
        token = fleet.new_token()
        distrusted = fleet.run(
            "install", "--control-plane", fleet.url, "--token-file", "-", "--no-service", "--json", text=token
        )
        assert distrusted.returncode != 0
        assert "certificate" in distrusted.stdout.lower()
        fleet.install("default", "--ca-file", str(certificate), token=token)
        fleet.start_daemon()
        done = fleet.run("job", "run", "--", "echo", "over TLS")
        assert done.stdout == "over TLS\n", done.stderr
        check_arrived_once(fleet, {1: submit(fleet, 1)})


def test_daemons_do_not_stampede_on_return(fleet: fleets.Fleet) -> None:
    """An outage of some seconds: each daemon asks a bounded number of times, and comes back by itself."""
    with proxies.before(fleet.port) as proxy:
        for name in ("default", "second"):
            fleet.install(name, url=proxy.url)
            fleet.start_daemon(name)
        proxy.set(proxies.Fault.CUT)
        time.sleep(4)
        fleets.wait_for(lambda: proxy.accepted >= 2, "they ask again")
        attempts = proxy.accepted
        proxy.set(proxies.Fault.PASS)
        assert attempts <= 80
        back = time.monotonic()
        for name in ("default", "second"):
            fleets.wait_for(lambda name=name: fleet.is_online(name), f"{name} is back")  # type: ignore[misc]
        # The longest pause after some seconds of outage is eight; without a new try at once it would be a long poll.
        assert time.monotonic() - back < 40


def test_follower_bears_an_outage(fleet: fleets.Fleet) -> None:
    fleet.install()
    fleet.start_daemon()
    gate = fleet.root / "gate"
    script = f"echo before; until [ -e {gate} ]; do sleep 0.05; done; echo after"
    fleet.start("follower", "job", "run", "--", "sh", "-c", script)
    fleets.wait_for(lambda: "before" in fleet.log("follower"), "the output is followed")
    fleet.kill("control-plane")
    fleets.wait_for(lambda: "Trying again" in fleet.log("follower"), "the outage is told")
    gate.touch()
    fleet.start_control_plane()
    fleet.wait_end("follower")
    assert [line for line in fleet.log("follower").splitlines() if line in {"before", "after"}] == ["before", "after"]

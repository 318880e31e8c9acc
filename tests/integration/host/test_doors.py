"""What tasks say, through their doors, to a real daemon with the process executor."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from agentina.host.work import doors, said
from agentina.inside import door
from agentina.protocol.states import Reason, State
from tests.fakes import control
from tests.integration.host.daemons import DaemonProcess

#: Says what stands in its argument, as JSON, many times over if there is a list; prints each answer.
TOOL = """\
import json, sys
sys.path.insert(0, {place!r})
from agentina.inside import door
for request in json.loads(sys.argv[1]):
    print(json.dumps(door.ask(request)), flush=True)
"""


@pytest.fixture
def tool(root: Path) -> Path:
    path = root / "tool.py"
    path.write_text(TOOL.format(place=str(Path(door.__file__).parents[2])))
    return path


def say(tool: Path, *requests: Mapping[str, object]) -> str:
    return f"{sys.executable} -I -S {tool} '{json.dumps(requests)}'"


def answers(task: control.Task) -> list[dict[str, object]]:
    return [json.loads(line) for line in bytes(task.output).decode().splitlines()]


def is_connected(task_id: str, root: Path) -> bool:
    """Whether somebody is connected to a task's door: unix sockets that are, by the kernel (proc_net_unix)."""
    connected = "03"
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(
        line[5] == connected and line[-1].endswith(doors.socket_name(task_id)) for line in lines if len(line) > 7
    )


async def test_command_line_works_in_a_task(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    task = plane.submit(
        "mkdir -p 'out [1]'; echo hi > 'out [1]/report'; cd 'out [1]'; "
        "agentina task progress 'half way' --percent 50; "
        "agentina task complain blocked-host --about x.org 'no way'; "
        "agentina task ask 'what now?'; agentina task artifact report; "
        "agentina task artifact never/made; agentina task budget",
        environment={"MY_TOKEN": "no way"},
    )
    await plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED, bytes(task.output)
    assert [artifact.name for artifact in task.outcome.artifacts] == ["out [1]/report"]
    assert task.outcome.detail.endswith("It declared artifacts that were not there in the end: out [1]/never/made.")
    lines = bytes(task.output).decode().splitlines()
    assert lines[0] == "noted"
    assert "1" in lines
    assert lines[-1] == "This task has no budget."
    progress = next(report.progress for report in plane.reports if report.progress is not None)
    assert (progress.text, progress.percent) == ("half way", 50)
    # What is marked as secret is no more said here than printed.
    assert [(found.kind, found.code, found.summary, found.evidence) for found in plane.anomalies] == [
        ("complaint", "COMPLAINT_BLOCKED_HOST", "blocked-host (x.org)", {"it says": "******"}),
        ("question", "TASK_QUESTION", "what now?", {}),
    ]


async def test_operators_answer_reaches_the_task(daemon: DaemonProcess, plane: control.FakeControl, tool: Path) -> None:
    complaint = {"verb": "complain", "kind": "missing-secret", "text": "no token"}
    task = plane.submit(say(tool, complaint, {"verb": "ask", "text": "which?", "wait": 600}, {"verb": "budget"}))
    await plane.until(lambda: len(plane.anomalies) == 2)
    asked = {found.kind: found.id for found in plane.anomalies}
    plane.answer(task, asked["complaint"], "take the other one")
    await plane.until(lambda: any(held.answered == 1 for beat in plane.heartbeats for held in beat.tasks))
    # A daemon that was killed gets them again, and tells the task once.
    await daemon.kill()
    await daemon.start()
    plane.answer(task, asked["question"], "that one")
    await plane.until_ended(task)
    _, question, last = answers(task)
    assert (question["question"], question["answer"]) == (1, "that one")
    assert question["notices"] == ["an operator answers what was reported about this task (ano_1): take the other one"]
    assert "notices" not in last


async def test_task_says_it_to_the_next_daemon_when_its_own_is_killed(
    daemon: DaemonProcess, plane: control.FakeControl, tool: Path, root: Path
) -> None:
    ask = say(tool, {"verb": "ask", "text": "which?"}, {"verb": "ask", "text": "and?", "wait": 600})
    task = plane.submit(f"{ask}; echo over")
    written = daemon.instance.tasks / task.id / said.FILE

    def questions() -> int:
        return len(msgspec.json.decode(written.read_bytes(), type=said.Said).questions) if written.exists() else 0

    await plane.until(lambda: questions() == 2)
    for number in (signal.SIGKILL, signal.SIGTERM):
        await daemon.kill(number)
        await daemon.start()
        # Whoever waits for an answer asks the next daemon, under the question's own number.
        await plane.until(lambda: is_connected(task.id, root))
        assert questions() == 2
    plane.cancel(task)
    await plane.until_ended(task)
    assert answers(task)[0]["question"] == 1


async def test_flood_is_refused_and_the_rest_goes_on(
    daemon: DaemonProcess, plane: control.FakeControl, tool: Path
) -> None:
    task = plane.submit(say(tool, *[{"verb": "progress", "text": f"step {n}"} for n in range(said.BURST + 30)]))
    await plane.until_ended(task)
    told = answers(task)
    refused = [one for one in told if "error" in one]
    assert refused
    assert all(one["error"]["code"] == "TASK_SAYS_TOO_MUCH" for one in refused)  # type: ignore[index]
    assert task.kinds.count("progress") == len(told) - len(refused)


NOT_SAID = [
    b"", b"\n", b"{}\n", b"null\n", b"\xff\xfe\n", b'{"verb":"status"}\n', b'{"verb":"drain","reason":"x"}\n',
    b'{"verb":"progress","id":"a","text":""}\n', b'{"verb":"progress","id":"a b","text":"x"}\n',
    b'{"verb":"progress","id":"a","text":"x","task_id":"job_x.1"}\n', b'{"verb":"answer","id":"a","question":0}\n',
    b'{"verb":"ask","id":"a","text":"x","wait":1e9}\n',
    b'{"verb":"complain","id":"a","kind":"rude","text":"x"}\n', b"x" * 200_000, b"[" * 20_000 + b"\n",
    b'{"verb":"artifact","id":"a","path":"/etc/passwd"}\n',
]  # fmt: skip


async def test_nothing_but_verbs_gets_in(daemon: DaemonProcess, plane: control.FakeControl, root: Path) -> None:
    task = plane.submit("sleep 600")
    path = daemon.instance.tasks / task.id / doors.socket_name(task.id)
    await plane.until(path.exists)
    for line in NOT_SAID:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        if not line.endswith(b"\n"):
            writer.write_eof()
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""  # it was cut off before it had sent all of what is too long
        assert not answer or "error" in json.loads(answer), (line, answer)
        writer.close()
    assert not (daemon.instance.tasks / task.id / said.FILE).exists()
    assert (await daemon.ask()).state == "online"
    # Whoever holds connections holds up neither the daemon nor, once they are let go, others of the task.
    held = [await asyncio.open_unix_connection(path) for _ in range(40)]
    assert (await daemon.ask()).state == "online"
    for _, writer in held:
        writer.close()
    plane.cancel(task)
    await plane.until_ended(task)
    await plane.until(lambda: not path.exists())


# --- what is found without the task's help ---------------------------------------------------------------------------


async def test_stuck_task_is_reported_and_then_stopped(daemon: DaemonProcess, plane: control.FakeControl) -> None:
    task = plane.submit("sleep 600", health={"stuck_after": 2, "act": "retry"})
    await plane.until(lambda: bool(plane.anomalies))
    (found,) = plane.anomalies
    assert (found.kind, found.code) == ("health", "RUN_STUCK")
    # The next daemon knows nothing of it, finds it again, and tells nobody twice.
    await daemon.kill()
    await daemon.start()
    await plane.until_ended(task)
    assert task.outcome is not None
    assert (task.outcome.state, task.outcome.reason) == (State.FAILED, Reason.UNHEALTHY)
    assert "nothing written" in task.outcome.detail
    assert [one.evidence.get("done about it") for one in plane.anomalies] == [None, "retry: its task is ended"]


async def test_what_cannot_be_told_at_once_is_said_plainly(plane: control.FakeControl, daemon: DaemonProcess) -> None:
    """Without the gateway a nudge waits for the task's next word to us."""
    assert daemon
    task = plane.submit("sleep 600", health={"stuck_after": 1, "act": "nudge"})
    await plane.until(lambda: len(plane.anomalies) > 1)
    assert "with the next tool of agentina's" in plane.anomalies[1].evidence["done about it"]
    plane.cancel(task)
    await plane.until_ended(task)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "timeout 9 sh -c 'while :; do :; done' || true",  # a compile: its parent sleeps until it has ended
        "for i in 1 2 3 4 5 6 7 8 9 10; do timeout 0.9 sh -c 'while :; do :; done' & wait; done",  # many short ones
    ],
)
async def test_busy_task_that_says_nothing_is_well(
    plane: control.FakeControl, daemon: DaemonProcess, script: str
) -> None:
    assert daemon
    task = plane.submit(script, health={"stuck_after": 3, "act": "stop"})
    await plane.until_ended(task)
    assert task.outcome is not None
    assert task.outcome.state is State.SUCCEEDED
    assert not plane.anomalies

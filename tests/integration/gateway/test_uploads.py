"""Large requests for models, and providers that do not take them: slow, stuck, answering before the end, gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import sys
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.gateway import account, budgets, calls, streams
from agentina.protocol import jobs
from agentina.system import tasks
from tests.fakes import deadlines, procfs
from tests.integration.gateway import beds, gates

#: What Anthropic takes is 32 MiB; more than all that systems hold between two processes.
SIZE: Final = 30_000_000
#: Tokens that a request of this size may have, and does not.
BUDGET: Final = 20_000_000
#: Seconds that a provider which takes nothing is given here.
STALL: Final = 1.0


def large(size: int = SIZE) -> dict[str, Any]:
    return gates.message(messages=[{"role": "user", "content": "x" * size}])


async def ask(gate: gates.Gate, size: int = SIZE) -> tuple[int, str]:
    """Status and words of the answer to a large request."""
    status, _, body = await gate.ask("/anthropic/v1/messages", large(size))
    return status, body.decode()


@contextlib.asynccontextmanager
async def paused(gate: gates.Gate) -> AsyncIterator[asyncio.Task[tuple[int, str]]]:
    """A large request that its provider has half of, and reads no more of for now."""
    gate.provider.scenario = "upload-pauses"
    asking = tasks.start(ask(gate), name="call", on_failure=lambda _: None)
    try:
        await asyncio.wait_for(gate.provider.holding.wait(), deadlines.HANG)
        yield asking
    finally:
        await tasks.cancel(asking)


@pytest.mark.parametrize(
    ("scenario", "status", "words", "end"),
    [
        (
            "upload-pauses", 502,
            f"anthropic stopped in the middle of the request, and took no more of it for {STALL:g} s.", "unreachable",
        ),
        ("upload-resets", 502, "anthropic broke off in the middle of the request.", "unreachable"),
        ("upload-413", 413, "too much: 9", "rejected"),
    ],
)  # fmt: skip
async def test_a_provider_that_does_not_take_a_request_is_told_of_and_bills_nothing(
    tmp_path: Path, scenario: str, status: int, *, words: str, end: str
) -> None:
    """Repeated by nobody but who asked, and after some failures not even sent."""
    patience = STALL if scenario == "upload-pauses" else deadlines.HANG
    async with gates.opened(tmp_path, stall_seconds=patience, limits=jobs.Budget(tokens=BUDGET)) as gate:
        gate.provider.scenario = scenario
        answered, body = await ask(gate)
        assert answered == status
        assert words in body
        assert gate.ends() == [end]
        assert gate.totals == budgets.Totals()
        assert gate.account.ledger.left(0)["tokens"] == BUDGET
        assert gate.provider.connections == 1
        gate.provider.scenario = "text"
        assert (await ask(gate, 1))[0] == 200
        assert gate.provider.connections == 2


async def test_a_provider_that_breaks_off_each_time_is_left_alone(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, stall_seconds=deadlines.HANG) as gate:
        gate.provider.scenario = "upload-resets"
        answers = [(await ask(gate))[0] for _ in range(7)]
        assert answers == [502] * 5 + [429] * 2
        assert gate.provider.connections == 5


async def test_a_provider_that_reads_slowly_gets_all_of_it(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, stall_seconds=deadlines.HANG) as gate:
        async with paused(gate) as asking:
            gate.provider.go_on.set()
            status, _ = await asking
        assert status == 200
        assert gate.ends() == ["completed"]
        used = gate.totals.used
        assert gate.provider.billed == [used.input, used.cached, used.output]


async def test_an_agent_that_goes_away_in_the_middle_has_used_nothing(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, stall_seconds=deadlines.HANG) as gate:
        async with paused(gate):
            pass
        while not gate.ends():
            await asyncio.wait_for(gate.account.changed.wait(), deadlines.HANG)
        assert gate.ends() == ["abandoned"]
        assert gate.totals == budgets.Totals()


async def test_a_task_s_requests_together_are_bounded(tmp_path: Path) -> None:
    """Two large ones at once; the third is read when one of them is over, and small ones go by."""
    async with gates.opened(tmp_path, stall_seconds=deadlines.HANG) as gate, paused(gate):
        gate.provider.holding.clear()
        second = tasks.start(ask(gate), name="second")
        await asyncio.wait_for(gate.provider.holding.wait(), deadlines.HANG)
        third = tasks.start(ask(gate), name="third")
        assert 2 * SIZE < account._MAX_HELD < 3 * SIZE
        received = gate.account.carried.sent
        gate.provider.scenario = "text"
        assert (await gate.message())[0] == 200
        assert gate.account.carried.sent - received < SIZE // 2
        gate.provider.go_on.set()
        assert [(await one)[0] for one in (second, third)] == [200, 200]


@pytest.mark.parametrize("size", [100, SIZE])
async def test_a_connection_that_breaks_off_is_forgotten_at_once(size: int) -> None:
    gc.collect()
    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = await streams.connect(["127.0.0.1"], listening.getsockname()[1])
            broken, _ = listening.accept()
            reader, writer, _ = server.raw()
            kept: list[weakref.ref[Any]] = [
                weakref.ref(server),
                weakref.ref(reader),
                weakref.ref(writer.transport.get_protocol()),
            ]
            del reader, writer
            headers = [(b"host", b"x"), (b"content-length", b"%d" % size)]
            asking = tasks.start(
                server.ask("POST", "/", headers, b"x" * size, seconds=deadlines.HANG), name="call",
                on_failure=lambda _: None,
            )  # fmt: skip
            await asyncio.to_thread(broken.recv, 100)
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            broken.close()
            await asyncio.wait({asking})
            assert isinstance(asking.exception(), streams.Gone)
            server.close()
        del server, asking
        await asyncio.sleep(0.01)
        assert [one() for one in kept] == [None] * 3
    finally:
        gc.enable()


async def test_a_request_that_is_too_large_is_refused_in_words(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, stall_seconds=deadlines.HANG) as gate:
        status, body = await ask(gate, calls.MAX_REQUEST + 10_000_000)
        assert status == 402
        assert f"a request of more than {calls.MAX_REQUEST} bytes" in body
        assert gate.provider.connections == 0


#: Makes a large request, so often as is said; prints each answer's status and words.
UPLOADER: Final = """
import json, os, sys, urllib.error, urllib.request
body = json.dumps({
    "model": "claude-haiku-4-5", "stream": True, "max_tokens": 100,
    "messages": [{"role": "user", "content": "x" * int(sys.argv[1])}],
}).encode()
for _ in range(int(sys.argv[2])):
    request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body)
    request.add_header("x-api-key", os.environ["ANTHROPIC_API_KEY"])
    try:
        with urllib.request.urlopen(request) as answer:
            answer.read()
            print(answer.status, flush=True)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode(), flush=True)
"""


async def test_a_real_daemon_s_gateway_holds_a_request_once_and_lets_it_go(bed: beds.Bed) -> None:
    """The whole way, through the forwarder: slow at first, then broken off again and again, and told of."""
    (bed.root / "uploader.py").write_text(UPLOADER)
    upload = f"{sys.executable} {bed.root}/uploader.py"
    bed.provider.scenario = "upload-pauses"
    script = f"touch ../mark; {upload} 1 1; {upload} {SIZE} 7; while [ -e ../mark ]; do sleep 0.1; done"
    task = bed.plane.submit(script, budget={"tokens": BUDGET}, resources={"memory": "512MiB"})
    await asyncio.wait_for(bed.provider.holding.wait(), deadlines.HANG)
    bed.provider.holding.clear()
    (gateway,) = procfs.gateways(bed.root)
    before = procfs.memory_mib(gateway, "VmRSS")
    bed.provider.let_go(holds_on=True)
    await asyncio.wait_for(bed.provider.holding.wait(), deadlines.HANG)
    assert procfs.memory_mib(gateway, "VmRSS") - before > SIZE >> 20, "it is there that the request is"
    bed.provider.scenario = "upload-resets"
    bed.provider.let_go()
    await bed.plane.until(lambda: task.output.count(b"\n") == 8)
    # The whole and its pieces, or what was read of it, and pieces on their way; and no more with each that broke off.
    assert procfs.memory_mib(gateway, "VmHWM") - before < 5 * SIZE >> 20
    (bed.root / f"var/lib/agentina/default/tasks/{task.id}/mark").unlink()
    await bed.plane.until_ended(task)
    assert task.outcome is not None
    statuses = [line.split()[0] for line in bytes(task.output).decode().splitlines()]
    assert statuses == ["200"] * 2 + ["502"] * 5 + ["429"], bytes(task.output)
    assert b"anthropic broke off in the middle of the request." in bytes(task.output)
    assert "broke off in the middle of the request" in bed.log
    (used,) = task.outcome.models
    assert (used.calls, [used.input, used.cached, used.output]) == (2, bed.provider.billed)

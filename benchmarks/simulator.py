"""Agents in one process that speak the real protocol, to load a control plane with. They run nothing.

Started by ``benchmarks.run`` as a process of its own, so that its CPU is not taken for the control plane's. Tokens come
on stdin; each JSON line on stdout is an answer to the benchmark, which sends a line when it wants the next.

- ``python -m benchmarks.simulator polls URL CA_FILE AGENTS SECONDS``: thousands of agents with held polls, then their
  heartbeats.
- ``python -m benchmarks.simulator jobs URL CA_FILE JOBS SLOTS``: an operator that submits one job after the other, and
  one agent that takes them and reports what a daemon reports of a trivial job.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import resource
import ssl
import sys
import time
import urllib.parse
from collections.abc import Coroutine
from typing import Any, Final, Literal, cast

import msgspec
import uvloop

from agentina.protocol import licensing, signing, wire
from agentina.protocol.states import Reason, State
from agentina.system import tasks
from benchmarks import measure

#: Connections opened at once: their TLS handshakes queue at the control plane.
_OPEN_AT_ONCE: Final = 64
#: Connections that share the heartbeats.
_BEAT_CONNECTIONS: Final = 64
#: Seconds a simulated task takes to start, and then to run.
_START_SECONDS: Final = 0.001
_RUN_SECONDS: Final = 0.003
_SUCCESS: Final = wire.Outcome(
    state=State.SUCCEEDED, reason=Reason.EXIT_ZERO, exit_code=0,
    usage=wire.Usage(wall_seconds=0.002, cpu_seconds=0.001, memory_peak_bytes=1 << 20),
)  # fmt: skip


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, just enough to load a server: content-length answers, keep-alive, one request."""

    def __init__(self, host: str, authorization: str) -> None:
        self._host = host
        self.authorization = authorization
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    @classmethod
    async def open(cls, url: str, context: ssl.SSLContext | None, authorization: str = "none") -> Connection:
        """Connect to the server of ``url``."""
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: cls(parts.netloc, authorization), parts.hostname, parts.port, ssl=context
        )
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect one answer; anything but 2xx fails its request."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        self._received = b""
        assert self._answer is not None, "an answer without a request"
        if self._answer.cancelled():
            return
        if head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(f"unexpected answer: {head.splitlines()[0]!r} {body[:300]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the control plane closed the connection"))

    def send(self, path: str, message: msgspec.Struct | bytes) -> asyncio.Future[bytes]:
        """Write a POST request; its answer comes with the future."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("the control plane closed the connection")
        body = message if isinstance(message, bytes) else msgspec.json.encode(message)
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: {self.authorization}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return self._answer

    def close(self) -> None:
        """Drop the connection."""
        assert self._transport is not None
        self._transport.abort()


class Agent:
    """One simulated agent."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._key = signing.SigningKey.generate()
        self._polls = itertools.count(1)
        self._acknowledged = 0
        self._session = 0
        self.assertion = ""
        self.stream = f"stream-{number}"

    async def activate(self, url: str, context: ssl.SSLContext | None, token: str) -> Connection:
        """Redeem ``token`` and open a session; a connection with the agent's assertion is returned."""
        connection = await Connection.open(url, context)
        request = licensing.Activate(
            token=token, public_key=self._key.public.key, proof=self._key.sign("activation", token.encode()),
            hostname=f"host-{self._number}", instance="default",
        )  # fmt: skip
        activated = msgspec.json.decode(await connection.send("/v1/activate", request), type=licensing.Activated)
        self.assertion = signing.make_assertion(
            self._key,
            agent_id=activated.agent_id,
            audience=activated.control_plane_id,
            now_ms=activated.server_time_ms,
        )
        connection.authorization = self.assertion
        opening = wire.SessionOpen(
            version="simulated", protocol=1, stream=self.stream, runners=["command"], max_concurrent_tasks=1000
        )
        answer = await connection.send("/v1/agent/session", opening)
        self._session = msgspec.json.decode(answer, type=wire.SessionOpened).session
        return connection

    def poll(self, connection: Connection, *, slots: int) -> asyncio.Future[bytes]:
        """Send a poll; the control plane holds it while there is nothing."""
        poll = wire.Poll(
            session=self._session, number=next(self._polls), acknowledged=self._acknowledged, slots=slots,
            memory_bytes=1 << 40, wait_seconds=60,
        )  # fmt: skip
        return connection.send("/v1/agent/poll", poll)

    def take(self, answer: bytes) -> list[str]:
        """Ids of the tasks in a poll's answer, which is acknowledged with the next poll."""
        message = msgspec.json.decode(answer, type=wire.PollAnswer)
        self._acknowledged = message.number
        return [msgspec.json.decode(signed.payload)["task_id"] for signed in message.assignments]

    async def heartbeat(self, connection: Connection) -> None:
        """Send one heartbeat and wait for its answer."""
        connection.authorization = self.assertion
        await connection.send("/v1/agent/heartbeat", wire.Heartbeat(session=self._session))

    def reports(self, reports: list[wire.Report]) -> wire.Reports:
        """The message that carries ``reports``."""
        return wire.Reports(session=self._session, stream=self.stream, reports=reports)


# --- thousands of agents -----------------------------------------------------------------------------------------


async def polls(url: str, context: ssl.SSLContext | None, count: int, seconds: int) -> None:
    """Activate ``count`` agents, hold their polls, then send heartbeats for ``seconds``."""
    agents = [Agent(number) for number in range(count)]
    tokens = [sys.stdin.readline().strip() for _ in agents]
    held: list[asyncio.Task[None]] = []
    gate = asyncio.Semaphore(_OPEN_AT_ONCE)

    async def hold(agent: Agent, connection: Connection) -> None:
        while True:  # a poll that brought nothing in its time is followed by the next, as a daemon's is
            agent.take(await agent.poll(connection, slots=1))

    async def begin(agent: Agent, token: str) -> None:
        async with gate:
            connection = await agent.activate(url, context, token)
            held.append(tasks.start(hold(agent, connection), name="poll", on_failure=lambda _: None))

    began = time.monotonic()
    await asyncio.gather(*map(begin, agents, tokens))
    say({"held": sum(not poll.done() for poll in held), "seconds": time.monotonic() - began})
    await go()
    beats = 0

    async def beat(mine: list[Agent]) -> None:
        nonlocal beats
        connection = await Connection.open(url, context)
        for agent in itertools.cycle(mine):
            if time.monotonic() >= end:
                break
            await agent.heartbeat(connection)
            beats += 1
        connection.close()

    senders = [agents[part::_BEAT_CONNECTIONS] for part in range(min(_BEAT_CONNECTIONS, count))]
    began = time.monotonic()
    end = began + seconds
    await asyncio.gather(*map(beat, senders))
    seconds_spent = time.monotonic() - began
    say({"heartbeats_per_second": beats / seconds_spent, "held": sum(not poll.done() for poll in held)})
    await go()


# --- many jobs -----------------------------------------------------------------------------------------------------


class Host:
    """An agent that takes tasks and reports what a daemon reports of each."""

    def __init__(self, agent: Agent, slots: int) -> None:
        self._agent = agent
        self._free = slots
        self._numbers = itertools.count(1)
        self._unsent: list[wire.Report] = []
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self.ended = 0

    async def take_work(self, connection: Connection) -> None:
        """Poll for ever."""
        while True:
            while not self._free:
                self._room.clear()
                await self._room.wait()
            for task_id in self._agent.take(await self._agent.poll(connection, slots=self._free)):
                self._free -= 1
                tasks.start(self._run(task_id), name=task_id)

    async def _run(self, task_id: str) -> None:
        self._report(task_id, "accepted")
        await asyncio.sleep(_START_SECONDS)
        self._report(task_id, "running", pid=4711)
        await asyncio.sleep(_RUN_SECONDS)
        self._report(task_id, "finishing")
        self._report(task_id, "finished", outcome=_SUCCESS)
        self._free += 1
        self._room.set()

    def _report(self, task_id: str, kind: Literal["accepted", "running", "finishing", "finished"], **more: Any) -> None:
        at_ms = time.time_ns() // 1_000_000
        self._unsent.append(wire.Report(number=next(self._numbers), at_ms=at_ms, task_id=task_id, kind=kind, **more))
        self._changed.set()

    async def send_reports(self, connection: Connection, until_ended: int) -> None:
        """Send what there is, one message at a time, until so many tasks have ended."""
        while self.ended < until_ended:
            await self._changed.wait()
            self._changed.clear()
            while self._unsent:
                batch, self._unsent = self._unsent[: wire.MAX_REPORTS], self._unsent[wire.MAX_REPORTS :]
                await connection.send("/v1/agent/reports", self._agent.reports(batch))
                self.ended += sum(report.kind == "finished" for report in batch)


async def jobs(url: str, context: ssl.SSLContext | None, count: int, slots: int) -> None:
    """Submit ``count`` jobs as fast as answers come, then again with pauses, and have them all run."""
    operator = await Connection.open(url, context, f"Bearer {sys.stdin.readline().strip()}")
    agent = Agent(0)
    connection = await agent.activate(url, context, sys.stdin.readline().strip())
    host = Host(agent, slots)
    working = tasks.start(host.take_work(connection), name="polls")
    reports = await Connection.open(url, context, agent.assertion)
    document = {"name": "bench", "payload": {"argv": ["/bin/true"]}, "resources": {"memory": 16 << 20}}
    body = json.dumps(document).encode()
    for pause in (0.0, 0.01):
        expected = host.ended + count
        reporting = tasks.start(host.send_reports(reports, expected), name="reports")
        began, answers = time.perf_counter(), []
        for _ in range(count):
            asked = time.perf_counter()
            await operator.send("/v1/jobs", body)
            answers.append(1000 * (time.perf_counter() - asked))
            # Uneven, so that nothing falls into step with the timers of either side.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        await reporting
        seconds = time.perf_counter() - began
        say({"seconds": seconds, "p50": measure.percentile(answers, 0.5), "p99": measure.percentile(answers, 0.99)})
        await go()
    await tasks.cancel(working)


# --- the process ---------------------------------------------------------------------------------------------------


def say(answer: dict[str, float]) -> None:
    """Print one line for the benchmark."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def go() -> None:
    """Wait until the benchmark has looked and wants the next."""
    await asyncio.to_thread(sys.stdin.readline)


def main() -> None:
    """See the module."""
    mode, url, ca_file, first, second = sys.argv[1:6]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    run = {"polls": polls, "jobs": jobs}[mode]
    work: Coroutine[Any, Any, None] = run(url, context, int(first), int(second))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()

"""Thousands of agents in one process that speak the real protocol: activation, sessions, held polls, heartbeats.

Run by ``benchmarks.run`` as a process of its own, so that its CPU is not taken for the control plane's:
``python -m benchmarks.simulator URL CA_FILE AGENTS SECONDS``. It reads activation tokens from stdin, prints one JSON
line when all polls are held, waits for a line, and prints one with the heartbeat rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import time
import urllib.parse

import msgspec

from agentina.protocol import signing, wire
from agentina.system import tasks

_OPEN_AT_ONCE = 64


class Connection:
    """One HTTP/1.1 connection, just enough to load a server: content-length answers, keep-alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str, context: ssl.SSLContext | None) -> Connection:
        """Connect to the server of ``url``."""
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        return cls(reader, writer, parts.netloc)

    def send(self, path: str, body: bytes, authorization: str) -> None:
        """Write a POST request."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: {authorization}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)

    async def receive(self) -> bytes:
        """Read one answer; anything but 2xx ends the run."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            raise SystemExit(f"unexpected answer: {head.splitlines()[0]!r} {body[:300]!r}")
        return body

    async def call(self, path: str, message: msgspec.Struct, authorization: str = "none") -> bytes:
        """Send and receive."""
        self.send(path, msgspec.json.encode(message), authorization)
        return await self.receive()

    def close(self) -> None:
        """Drop the connection."""
        self._writer.close()


class Agent:
    """One simulated agent."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._key = signing.SigningKey.generate()
        self._assertion = ""
        self._session = 0

    async def activate(self, connection: Connection, token: str) -> None:
        """Redeem ``token`` and open a session."""
        request = wire.Activate(
            token=token,
            public_key=self._key.public.key,
            proof=self._key.sign("activation", token.encode()),
            hostname=f"host-{self._number}",
            instance="default",
        )
        activated = msgspec.json.decode(await connection.call("/v1/activate", request), type=wire.Activated)
        self._assertion = signing.make_assertion(
            self._key,
            agent_id=activated.agent_id,
            audience=activated.control_plane_id,
            now_ms=activated.server_time_ms,
        )
        opening = wire.SessionOpen(
            version="simulated", protocol=1, stream=f"stream-{self._number}", runners=["command"]
        )
        answer = await connection.call("/v1/agent/session", opening, self._assertion)
        self._session = msgspec.json.decode(answer, type=wire.SessionOpened).session

    def hold_poll(self, connection: Connection) -> None:
        """Send a poll; the control plane keeps it open."""
        poll = wire.Poll(session=self._session, number=1, slots=1, memory_bytes=1 << 30, wait_seconds=60)
        connection.send("/v1/agent/poll", msgspec.json.encode(poll), self._assertion)

    async def heartbeat(self, connection: Connection) -> None:
        """Send one heartbeat and wait for its answer."""
        await connection.call("/v1/agent/heartbeat", wire.Heartbeat(session=self._session), self._assertion)


async def simulate(url: str, context: ssl.SSLContext | None, count: int, *, seconds: float, tokens: list[str]) -> None:
    """Activate ``count`` agents, hold their polls, then send heartbeats for ``seconds``."""
    agents = [Agent(number) for number in range(count)]
    held: list[Connection] = []
    gate = asyncio.Semaphore(_OPEN_AT_ONCE)

    async def begin(agent: Agent, token: str) -> None:
        async with gate:
            connection = await Connection.open(url, context)
            await agent.activate(connection, token)
            agent.hold_poll(connection)
            held.append(connection)

    await asyncio.gather(*(begin(agent, token) for agent, token in zip(agents, tokens, strict=True)))
    say({"held": len(held)})
    await asyncio.to_thread(sys.stdin.readline)  # the benchmark measures the idle control plane, then says go
    beats = 0
    end = time.monotonic() + seconds

    async def beat(mine: list[Agent]) -> None:
        nonlocal beats
        connection = await Connection.open(url, context)
        while time.monotonic() < end:
            for agent in mine:
                await agent.heartbeat(connection)
                beats += 1
                if time.monotonic() >= end:
                    break
        connection.close()

    started = time.monotonic()
    senders = [tasks.start(beat(agents[part::16]), name=f"beat-{part}") for part in range(16)]
    await asyncio.gather(*senders)
    say({"heartbeats_per_second": beats / (time.monotonic() - started)})
    for connection in held:
        connection.close()


def say(answer: dict[str, float]) -> None:
    """Print one line for the benchmark."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """See the module."""
    url, ca_file, count, seconds = sys.argv[1:5]
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    tokens = [sys.stdin.readline().strip() for _ in range(int(count))]
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop  # noqa: PLC0415 - the simulator should not be the bottleneck

        uvloop.install()
    asyncio.run(simulate(url, context, int(count), seconds=float(seconds), tokens=tokens))


if __name__ == "__main__":
    main()

"""What the gateway adds to a call of a model, and how much of an answer passes through it in a second of its CPU.

A provider that costs next to nothing runs in a process of its own; the same client asks it directly and through the
gateway, in turn, so that noise meets both alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agentina.gateway import channel, days, keeper, tokens, variables
from benchmarks import measure

#: Bytes of the large answer, and of its events.
LARGE: Final = 256 << 20
_EVENT: Final = 60_000
_CALLS: Final = 400

_PROVIDER: Final = r"""
import json, socket, sys, threading
size, event = int(sys.argv[1]), int(sys.argv[2])
def chunk(data): return b"%x\r\n%s\r\n" % (len(data), data)
def said(document): return b"event: x\ndata: %s\n\n" % json.dumps(document).encode()
start = chunk(said({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}))
text = chunk(said({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 100}}))
large = chunk(said({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * event}})) * 16
end = chunk(said({"type": "message_delta", "usage": {"output_tokens": 7}})) + b"0\r\n\r\n"
head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
def serve(one):
    reader = one.makefile("rb")
    while line := reader.readline():
        length = 0
        while (field := reader.readline()) != b"\r\n":
            if field.lower().startswith(b"content-length:"): length = int(field.split(b":")[1])
        body = reader.read(length)
        if b'"large"' in body:
            one.sendall(head + start)
            for _ in range(size // len(large)): one.sendall(large)
            one.sendall(end)
        else: one.sendall(head + start + text * 10 + end)
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
while True: threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
"""


class Figures(NamedTuple):
    """What was measured."""

    direct_ms: list[float]
    through_ms: list[float]
    #: The gateway's CPU for one call.
    call_cpu_ms: float
    #: Megabytes of a streamed answer in a second, and in a second of the gateway's CPU.
    answer_per_second: float
    answer_per_cpu: float
    #: The same of a tunnel.
    tunnel_per_second: float
    tunnel_per_cpu: float
    resident_mib: float


def run() -> Figures:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="agentina-gateway-") as root, _provider() as port:
        return asyncio.run(_measure(Path(root), port))


@contextlib.contextmanager
def _provider() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", _PROVIDER, str(LARGE), str(_EVENT)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


async def _measure(root: Path, port: int) -> Figures:
    (root / "credentials").mkdir()
    (root / "credentials/key").write_text("sk-bench")
    (root / "credentials/key").chmod(0o600)
    provider = {"name": "p", "api": "anthropic", "url": f"http://127.0.0.1:{port}", "credentials": ["key"]}
    settings = {"providers": [provider], "networks": ["127.0.0.0/8"]}
    (root / "gateway.yaml").write_text(json.dumps(settings))

    def hear(word: channel.Word) -> None:
        # No call is let through before the budgets of the day are known: here is a control plane that has none.
        if isinstance(word, channel.Wanted):
            gateway.tell(channel.Learn(known=days.Known(day=word.want.day)))

    gateway = keeper.Keeper(root / "gateway.yaml", hear=hear)
    token = tokens.make()
    order = channel.Open(
        task_id="bench",
        directory=str(root),
        door=channel.Door(directory=str(root)),
        digest=tokens.digest(token),
        scope=[f"127.0.0.1:{port}"],
    )
    try:
        await gateway.open(order)
        return await asyncio.to_thread(_figures, root, port, token, gateway.pid)
    finally:
        await gateway.stop()


def _figures(root: Path, port: int, token: str, pid: int) -> Figures:
    direct = _Client(socket.create_connection(("127.0.0.1", port)), token)
    unix = socket.socket(socket.AF_UNIX)
    unix.connect(str(root / variables.socket_name("bench")))
    through = _Client(unix, token)
    for client in (direct, through):
        for _ in range(20):
            client.ask("small")
    measure.wait_quiet()
    busy = measure.run_seconds(pid)
    pairs = [(_timed(direct), _timed(through)) for _ in range(_CALLS)]
    call_cpu = 1000 * (measure.run_seconds(pid) - busy) / _CALLS
    busy, began = measure.run_seconds(pid), time.monotonic()
    size = through.ask("large")
    answer = size / 1e6 / (time.monotonic() - began), size / 1e6 / (measure.run_seconds(pid) - busy)
    resident = measure.memory_kib(pid)["Rss"] / 1024
    tunnel = through.tunnel(port)
    busy, began = measure.run_seconds(pid), time.monotonic()
    size = tunnel.ask("large")
    passed = size / 1e6 / (time.monotonic() - began), size / 1e6 / (measure.run_seconds(pid) - busy)
    return Figures([one for one, _ in pairs], [other for _, other in pairs], call_cpu, *answer, *passed, resident)


def _timed(client: _Client) -> float:
    began = time.perf_counter()
    client.ask("small")
    return 1000 * (time.perf_counter() - began)


class _Client:
    """Reads no more of an answer than where it ends, so that it costs little."""

    def __init__(self, connection: socket.socket, token: str) -> None:
        self._connection = connection
        self._token = token

    def ask(self, text: str) -> int:
        """One call; bytes of its answer."""
        document = {"model": "claude-haiku-4-5", "max_tokens": 100, "stream": True, "text": text}
        body = json.dumps(document).encode()
        head = f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: {self._token}\r\n"
        self._connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        size, tail = 0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            piece = self._connection.recv(1 << 18)
            if not piece:
                raise SystemExit("the connection broke off")
            size += len(piece)
            tail = (tail + piece)[-7:] if len(piece) < 7 else piece[-7:]
        return size

    def tunnel(self, port: int) -> _Client:
        """The same connection, after CONNECT."""
        target = f"127.0.0.1:{port}"
        ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer {self._token}\r\n\r\n"
        self._connection.sendall(ask.encode())
        answer = self._connection.recv(1000)
        if b" 200 " not in answer:
            raise SystemExit(f"no tunnel: {answer!r}")
        return self

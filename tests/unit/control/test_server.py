"""What goes out on a connection, piece by piece. The transport is a fake: on a socket pieces cannot be told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn import server as uvicorn_server

from agentina.control import server
from tests.fakes import deadlines


class Transport(asyncio.Transport):
    """Keeps every piece."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.pieces: list[bytes] = []
        self.closed = False
        self.written = asyncio.Event()

    def write(self, data: Any) -> None:
        assert not self.closed
        self.pieces.append(bytes(data))
        self.written.set()

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


Send = Callable[[dict[str, Any]], Awaitable[None]]


async def answer(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    """Answer with the length of the body; to /stream in two pieces with a pause between."""
    size = len((await receive())["body"])
    is_stream = scope["path"] == "/stream"
    length = [] if is_stream else [(b"content-length", b"%d" % len(str(size)))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    if is_stream:
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"%d" % size})


def connect() -> tuple[server.Protocol, Transport]:
    config = uvicorn.Config(answer, http=server.Protocol, lifespan="off", log_config=None)
    config.load()
    protocol, transport = server.Protocol(config, uvicorn_server.ServerState(), {}), Transport()
    protocol.connection_made(transport)
    return protocol, transport


async def settled(transport: Transport, *, pieces: int) -> list[bytes]:
    """Wait for so many pieces, and a moment for one too many."""
    while len(transport.pieces) < pieces:
        transport.written.clear()
        await asyncio.wait_for(transport.written.wait(), deadlines.HANG)
    await asyncio.sleep(0.02)
    return transport.pieces


async def test_an_answer_leaves_in_one_piece() -> None:
    protocol, transport = connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
    (piece,) = await settled(transport, pieces=1)
    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert piece.endswith(b"\r\n\r\n3")


async def test_answers_stay_apart() -> None:
    protocol, transport = connect()
    for number in range(2):
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await settled(transport, pieces=number + 1)
    first, second = transport.pieces
    assert first == second
    assert first.count(b"HTTP/1.1 200") == 1


async def test_a_head_without_a_body_does_not_stay_behind() -> None:
    protocol, transport = connect()
    protocol.data_received(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
    (piece,) = await settled(transport, pieces=1)
    assert piece.endswith(b"\r\n\r\n")


async def test_who_waits_for_100_continue_gets_it_before_the_body_is_sent() -> None:
    protocol, transport = connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
    (piece,) = await settled(transport, pieces=1)
    assert piece == b"HTTP/1.1 100 Continue\r\n\r\n"
    protocol.data_received(b"abc")
    *_, last = await settled(transport, pieces=2)
    assert last.endswith(b"\r\n\r\n3")


async def test_a_stream_does_not_wait_for_its_next_piece() -> None:
    protocol, transport = connect()
    protocol.data_received(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
    transport.written.clear()
    await asyncio.wait_for(transport.written.wait(), deadlines.HANG)
    assert transport.pieces[0].endswith(b"5\r\nfirst\r\n")
    assert b"".join(await settled(transport, pieces=2)).endswith(b"1\r\n0\r\n0\r\n\r\n")


async def test_what_waits_leaves_before_the_connection_is_closed() -> None:
    protocol, transport = connect()
    protocol.data_received(b"nonsense\r\n\r\n")
    assert transport.closed
    (piece,) = transport.pieces
    assert piece.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (b"GET /", b"x" * 8192),
        (b"GET / HTTP/1.1\r\nname: ", b"x" * 8192),
        (b"GET / HTTP/1.1\r\n", b"name: value\r\n" * 512),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"name: value\r\n" * 512),
    ],
    ids=["url", "header", "headers", "trailers"],
)
async def test_what_has_no_end_is_not_kept(before: bytes, piece: bytes) -> None:
    protocol, transport = connect()
    protocol.data_received(before)
    for _ in range(32):
        if transport.closed:
            break
        protocol.data_received(piece)
    assert transport.closed
    if before.startswith(b"GET"):
        (said,) = transport.pieces
        assert said.startswith(b"HTTP/1.1 413 ")
        assert b"INPUT_TOO_LARGE" in said


async def test_a_body_in_many_pieces_is_no_head_without_end() -> None:
    protocol, transport = connect()
    protocol.data_received(b"POST / HTTP/1.1\r\ncontent-length: 131072\r\n\r\n")
    for _ in range(16):
        protocol.data_received(b"x" * 8192)
    (piece,) = await settled(transport, pieces=1)
    assert piece.endswith(b"\r\n\r\n131072")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n"])
async def test_who_does_not_go_on_is_not_waited_for(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.01)
    protocol, transport = connect()
    if sent:
        protocol.data_received(sent)
    async with asyncio.timeout(deadlines.HANG):
        while not transport.closed:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)


async def test_who_has_asked_is_not_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.01)
    protocol, transport = connect()
    for number in range(2):
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n")
        protocol.data_received(b"\r\n")
        await asyncio.sleep(0.03)
        await settled(transport, pieces=number + 1)
    assert not transport.closed

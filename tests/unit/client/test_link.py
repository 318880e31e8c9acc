from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.client import link
from agentina.protocol import signing, wire
from tests.fakes import deadlines

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"offset":7}'


class Raw:
    """A server that answers each request, read to its end, with the bytes it was given."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                body = await reader.readexactly(int(size.split(b":")[1]))
                self.requests.append(head + body)
                answer = self.answers.pop(0) if self.answers else OK
                writer.write(answer.removeprefix(b"CLOSE"))
                await writer.drain()
                if answer.startswith(b"CLOSE"):
                    break
        writer.close()


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    served = Raw()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    yield served
    server.close()


@pytest.fixture
async def connected(raw: Raw) -> AsyncIterator[link.Link]:
    made = link.Link(f"http://127.0.0.1:{raw.port}/prefix/")
    yield made
    await made.close()


async def put(connected: link.Link, body: bytes = b"abc", seconds: float = deadlines.HANG) -> wire.PieceStored:
    return await connected.put("/v1/x", body, wire.PieceStored, seconds=seconds)


async def test_connection_is_kept_and_the_prefix_is_used(connected: link.Link, raw: Raw) -> None:
    assert [(await put(connected)).offset for _ in range(3)] == [7, 7, 7]
    assert raw.connections == 1
    assert raw.requests[0].startswith(b"PUT /prefix/v1/x HTTP/1.1\r\n")
    assert raw.requests[0].endswith(b"\r\n\r\nabc")


async def test_connection_closed_while_idle_is_replaced(connected: link.Link, raw: Raw) -> None:
    raw.answers = [b"CLOSE" + OK]
    await put(connected)
    assert (await put(connected)).offset == 7
    assert raw.connections == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"CLOSE", "CONTROL_PLANE_UNREACHABLE"),
        (b"CLOSE" + OK[:-4], "ANSWER_UNREADABLE"),
        (b"CLOSEnonsense\r\n\r\n", "ANSWER_UNREADABLE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<htm>", "ANSWER_UNREADABLE"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"offset":"x"}', "ANSWER_UNREADABLE"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 5\r\n\r\n<htm>", "ANSWER_UNREADABLE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (5 << 20), "ANSWER_UNREADABLE"),
    ],
)
async def test_every_bad_answer_is_a_catalogue_error(connected: link.Link, raw: Raw, answer: bytes, code: str) -> None:
    raw.answers = [answer]
    with pytest.raises(errors.AgentinaError) as caught:
        await put(connected)
    assert caught.value.code == code
    assert (await put(connected)).offset == 7, "the next request works"


async def test_refusal_keeps_its_code_and_retry_after(connected: link.Link, raw: Raw) -> None:
    body = msgspec.json.encode(errors.to_wire(errors.OVERLOADED(what="polls", retry_after=3)))
    raw.answers = [b"HTTP/1.1 429 Slow\r\nRetry-After: 9\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)]
    with pytest.raises(errors.AgentinaError) as caught:
        await put(connected)
    assert caught.value.code == "OVERLOADED"
    assert link.retry_after(caught.value) == pytest.approx(9)


async def test_silent_server_ends_at_the_time_limit(connected: link.Link, raw: Raw) -> None:
    raw.answers = [b"HTTP/1.1 200 OK\r\n"]
    with pytest.raises(errors.AgentinaError) as caught:
        await put(connected, seconds=0.1)
    assert caught.value.code == "CONTROL_PLANE_UNREACHABLE"


async def test_nobody_listening_is_unreachable(raw: Raw) -> None:
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(errors.AgentinaError) as caught:
        await put(link.Link(f"http://127.0.0.1:{port}"))
    assert caught.value.code == "CONTROL_PLANE_UNREACHABLE"


async def test_canceled_request_does_not_give_its_answer_to_the_next(connected: link.Link, raw: Raw) -> None:
    raw.answers = [b"HTTP/1.1 200 OK\r\n"]
    canceled = asyncio.ensure_future(put(connected))  # noqa: TID251 - gathered below
    while not raw.requests:  # noqa: ASYNC110 - another coroutine's list has no event
        await asyncio.sleep(0.01)
    canceled.cancel()
    await asyncio.gather(canceled, return_exceptions=True)
    assert (await put(connected)).offset == 7
    assert raw.connections == 2


class _Clock:
    def __init__(self) -> None:
        self.wall, self.seconds = 1_000_000_000_000, 50.0

    def wall_ms(self) -> int:
        return self.wall

    def boot(self) -> float:
        return self.seconds


async def test_time_is_the_control_planes_and_setting_the_clock_changes_nothing(raw: Raw) -> None:
    clock = _Clock()
    made = link.Link(f"http://127.0.0.1:{raw.port}", clocks=clock)
    assert made.now_ms() == clock.wall
    raw.answers = [OK.replace(b"OK\r\n", b"OK\r\nAgentina-Time: 1700000000000\r\n")]
    await put(made)
    clock.wall -= 86_400_000
    clock.seconds += 2
    assert made.now_ms() == 1_700_000_002_000
    await made.close()


async def test_time_of_thousands_of_digits_is_none(raw: Raw) -> None:
    clock = _Clock()
    made = link.Link(f"http://127.0.0.1:{raw.port}", clocks=clock)
    raw.answers = [OK.replace(b"OK\r\n", b"OK\r\nAgentina-Time: " + b"9" * 5000 + b"\r\n")]
    await put(made)
    assert made.now_ms() == clock.wall
    await made.close()


async def test_expired_assertion_is_made_anew_with_the_time_told(raw: Raw) -> None:
    signer = link.Signer(key=signing.SigningKey.generate(), agent_id="a", audience="cp")
    made = link.Link(f"http://127.0.0.1:{raw.port}", signer=signer)
    body = msgspec.json.encode(errors.to_wire(errors.ASSERTION_EXPIRED(server_time_ms=1_700_000_000_000)))
    raw.answers = [b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)]
    await put(made)
    await put(made)
    await made.close()
    headers = [
        next(line for line in request.split(b"\r\n") if line.lower().startswith(b"authorization")).split(b": ")[1]
        for request in raw.requests
    ]
    issued = [signing.read_assertion(header.decode())[1].issued_ms for header in headers]
    assert issued[0] > 1_750_000_000_000
    assert 0 <= issued[1] - 1_700_000_000_000 < 5000
    assert headers[1] == headers[2], "an assertion is used again"


def test_assertion_is_renewed_before_its_end_and_when_time_went_back() -> None:
    signer = link.Signer(key=signing.SigningKey.generate(), agent_id="a", audience="cp")
    first = signer.header(1_000_000)
    assert signer.header(1_000_000 + 239_999) == first
    assert signer.header(1_000_000 + 240_000) != first
    assert signer.header(5) != first


async def test_tls_trusts_the_named_ca_and_nothing_else(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.with_name("both.pem"))
    served = Raw()
    server = await asyncio.start_server(served.serve, "localhost", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    trusting = link.Link(url, ca_file=str(certificate))
    assert (await put(trusting)).offset == 7
    await trusting.close()
    with pytest.raises(errors.AgentinaError) as caught:
        await put(link.Link(url))
    assert caught.value.code == "CONTROL_PLANE_UNREACHABLE"
    server.close()


async def test_ca_file_that_cannot_be_used_is_named_and_read_again(certificate: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.pem"
    named.touch()
    trusting = link.Link("https://localhost:1", ca_file=str(named))
    with pytest.raises(errors.AgentinaError, match=rf"{named} cannot be used") as caught:
        await put(trusting)
    assert caught.value.code == "CONTROL_PLANE_UNREACHABLE"
    await asyncio.to_thread(shutil.copyfile, certificate, named)
    with pytest.raises(errors.AgentinaError, match="refused"):
        await put(trusting)


async def _tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes]) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    seen.append(head.split(b"\r\n")[0])
    writer.write(b"HTTP/1.1 407 Authenticate\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    handler: Callable[..., object] = lambda reader, writer: _tunnel(reader, writer, seen)  # noqa: E731
    proxy = await asyncio.start_server(handler, "127.0.0.1", 0)  # type: ignore[arg-type]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(errors.AgentinaError) as caught:
        await put(link.Link("https://control.invalid:8443"))
    proxy.close()
    assert "answered 407 to CONNECT" in str(caught.value)
    assert seen == [b"CONNECT control.invalid:8443 HTTP/1.1"]

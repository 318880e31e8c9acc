from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentina.gateway import account, record, streams
from tests.fakes import deadlines
from tests.integration.gateway import gates

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def names(host: str, port: int) -> list[str]:
    """A name service: everything but what names its own address is here."""
    del port
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    return {"metadata.example.com": ["169.254.169.254"], "nowhere.example.com": []}.get(host, ["127.0.0.1"])


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server on a free port of loopback."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()


async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request's head, and its body where it has a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    body = await reader.readexactly(length)
    if b"transfer-encoding: chunked" in lines:
        body = await reader.readuntil(b"0\r\n\r\n")
    answer = head + body
    writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
    await writer.drain()


def auth(gate: gates.Gate) -> bytes:
    return b"Proxy-Authorization: Basic " + base64.b64encode(f"task:{gate.token}".encode()) + b"\r\n"


def connect(gate: gates.Gate, host: str) -> bytes:
    return f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n".encode() + auth(gate) + b"\r\n"


async def test_a_tunnel_passes_bytes_both_ways(tmp_path: Path) -> None:
    async with serving(echo) as port, gates.opened(tmp_path, scope=[f"*.example.com:{port}"], resolver=names) as gate:
        answer = await gate.raw(connect(gate, f"git.example.com:{port}") + b"early " + b"x" * 1_000_000)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b"early " + b"x" * 1_000_000
        request = connect(gate, f"git.example.com:{port}")
        assert gate.account.carried == streams.Carried(received=len(answer), sent=len(request) + len(body))
        # Written down once, however often it is reached; what was refused is not.
        await gate.raw(connect(gate, f"git.example.com:{port}"))
        await gate.raw(connect(gate, f"git.example.org:{port}"))
        story = record.read(gate.directory)
        assert story is not None
        assert story.reached == [f"git.example.com:{port}"]


async def test_plain_http_is_passed_on_without_what_is_the_connections(tmp_path: Path) -> None:
    async with serving(mirror) as port, gates.opened(tmp_path, scope=[f"example.com:{port}"], resolver=names) as gate:
        host = f"example.com:{port}".encode()
        request = b"POST http://%s/p?q=1 HTTP/1.1\r\nHost: %s\r\n%sConnection: x-hop\r\nX-Hop: 1\r\nX-Mine: 2\r\n"
        answer = await gate.raw(request % (host, host, auth(gate)) + b"Content-Length: 4\r\n\r\nbody")
        head, _, seen = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"set-cookie: a=b" in head.lower()
        assert seen.startswith(b"POST /p?q=1 HTTP/1.1\r\n")
        assert seen.endswith(b"\r\n\r\nbody")
        assert gate.account.carried.received == len(answer)
        for absent in (b"x-hop", b"proxy-authorization", gate.token.encode()):
            assert absent not in seen.lower()
        assert b"x-mine: 2" in seen.lower()


async def test_a_chunked_body_is_framed_anew(tmp_path: Path) -> None:
    async with serving(mirror) as port, gates.opened(tmp_path, scope=[f"example.com:{port}"], resolver=names) as gate:
        host = f"example.com:{port}".encode()
        head = b"POST http://%s/ HTTP/1.1\r\nHost: %s\r\n%sTransfer-Encoding: chunked\r\n\r\n" % (
            host,
            host,
            auth(gate),
        )
        answer = await gate.raw(head + b"3;evil=1\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: x\r\n\r\n")
        assert b"evil" not in answer
        assert b"abcd" in answer.replace(b"\r\n1\r\n", b"").replace(b"3\r\n", b"")


async def test_a_websocket_is_passed_on(tmp_path: Path) -> None:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"upgrade: websocket" in head.lower()
        writer.write(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello ")
        await echo(reader, writer)

    async with serving(server) as port, gates.opened(tmp_path, scope=[f"example.com:{port}"], resolver=names) as gate:
        host = f"example.com:{port}".encode()
        request = b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\n%sConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes"
        head, _, body = (await gate.raw(request % (host, host, auth(gate)))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        assert body == b"hello frames"


async def test_an_upgrade_to_anything_else_is_not_passed_on(tmp_path: Path) -> None:
    async with serving(mirror) as port, gates.opened(tmp_path, scope=[f"example.com:{port}"], resolver=names) as gate:
        host = f"example.com:{port}".encode()
        request = (
            b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\n%sConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
        )
        answer = await gate.raw(request % (host, host, auth(gate)))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"h2c" not in answer


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("evil.net:443", "scope"),
        ("other.example.com:443", "policy"),
        ("git.example.com:22", "scope"),
        ("metadata.example.com:443", "address"),
        ("nowhere.example.com:443", "address"),
        ("127.0.0.1:443", "scope"),
    ],
)
async def test_everything_else_is_refused_and_told(tmp_path: Path, host: str, reason: str) -> None:
    policy = ["git.example.com", "metadata.example.com", "nowhere.example.com", "evil.net"]
    async with gates.opened(tmp_path, scope=["*.example.com"], policy=policy, resolver=names) as gate:
        for _ in range(3):
            answer = await gate.raw(connect(gate, host))
            assert answer.startswith(b"HTTP/1.1 403")
            assert host.partition(":")[0].encode() in answer
            assert b"[EGRESS_REFUSED]" in answer
        assert gate.refusals() == [("EGRESS_REFUSED", reason, host.partition(":")[0])]


#: The ways to a host, as a task asks for them.
WAYS = {
    "a tunnel": "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n",
    "a fetch": "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n",
    "a websocket": "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_is_judged_alike(tmp_path: Path, way: str) -> None:
    """By exact name and by wildcard, with the policy's and the address's word; the same address is connected to."""
    connected = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        writer.close()

    async with serving(count) as port:
        scope = [f"example.com:{port}", f"*.example.com:{port}", f"other.net:{port}"]
        policy = scope[:2]
        async with gates.opened(tmp_path, scope=scope, policy=policy, resolver=names) as gate:

            async def ask(host: str) -> bytes:
                head = WAYS[way].format(host).encode()
                return await gate.raw(head + auth(gate) + b"\r\n")

            for host in (f"example.com:{port}", f"a.b.example.com:{port}"):
                assert b" 403 " not in (await ask(host)).partition(b"\r\n")[0]
            assert connected == 2
            refused = ("evil.net", "other.net", "notexample.com", "metadata.example.com", "127.0.0.1")
            for host in refused:
                assert (await ask(f"{host}:{port}")).startswith(b"HTTP/1.1 403"), host
            assert connected == 2
            assert [host for code, _, host in gate.refusals() if code == "EGRESS_REFUSED"] == list(refused)


@pytest.mark.parametrize("way", WAYS)
async def test_a_name_that_leads_inside_is_refused(tmp_path: Path, way: str) -> None:
    async with gates.opened(tmp_path, scope=["*"], networks=(), resolver=names) as gate:
        for host in ("rebinding.example.com:443", "127.0.0.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443"):
            answer = await gate.raw(WAYS[way].format(host).encode() + auth(gate) + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 403"), host
            assert b"is loopback" in answer


async def test_the_address_that_was_judged_is_connected_to(tmp_path: Path) -> None:
    asked = []

    async def rebinding(host: str, port: int) -> list[str]:
        del port
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    async with serving(echo) as port, gates.opened(tmp_path, scope=[f"example.com:{port}"], resolver=rebinding) as gate:
        answer = await gate.raw(connect(gate, f"example.com:{port}") + b"ping")
        assert answer.endswith(b"ping")
        assert asked == ["example.com"]


async def test_names_without_an_answer_do_not_take_all_threads(tmp_path: Path) -> None:
    at_once, most = 0, 0
    silent, full = asyncio.Event(), asyncio.Event()

    async def slow(host: str, port: int) -> list[str]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == account.RESOLVING:
            full.set()
        await silent.wait()
        at_once -= 1
        return await names(host, port)

    async with serving(echo) as port, gates.opened(tmp_path, scope=[f"*.example.com:{port}"], resolver=slow) as gate:
        asking = [gate.raw(connect(gate, f"n{number}.example.com:{port}")) for number in range(12)]
        answers = asyncio.gather(*asking)
        await asyncio.wait_for(full.wait(), deadlines.HANG)
        silent.set()
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in await answers)
        assert most == account.RESOLVING


async def test_an_unreachable_host_is_told_from_a_refused_one(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, scope=["example.com:1"], resolver=names) as gate:
        answer = await gate.raw(connect(gate, "example.com:1"))
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"cannot be reached" in answer


async def test_a_token_is_needed_and_only_the_tasks_own_will_do(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, scope=["*"], resolver=names) as gate:
        bare = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n"
        answer = await gate.raw(bare)
        assert answer.startswith(b"HTTP/1.1 407")
        assert b"proxy-authenticate: basic" in answer.lower()
        other = (
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: Bearer agt_other\r\n\r\n"
        )
        assert (await gate.raw(other)).startswith(b"HTTP/1.1 407")
        assert (await gate.ask("/anthropic/v1/messages", gates.message(), token="agt_other"))[0] == 403
        assert (await gate.ask("/anthropic/v1/messages", gates.message(), token=""))[0] == 403
        assert not gate.provider.asked


async def test_a_client_may_ask_again_with_its_token_on_the_same_connection(tmp_path: Path) -> None:
    async with serving(echo) as port, gates.opened(tmp_path, scope=[f"example.com:{port}"], resolver=names) as gate:
        host = f"example.com:{port}"
        bare = f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        answer = await gate.raw(bare + connect(gate, host) + b"ping")
        assert answer.startswith(b"HTTP/1.1 407")
        assert b"HTTP/1.1 200" in answer
        assert answer.endswith(b"ping")


async def test_after_the_tasks_end_nobody_listens(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        assert gate.socket.stat().st_mode & 0o777 == 0o600
        assert (await gate.ask("/", method="HEAD"))[0] == 200
    with pytest.raises(OSError, match=r"No such file|refused"):
        await gate.ask("/", method="HEAD")


@pytest.mark.parametrize(
    "raw",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / H",
        b"GET http://a.example.com/ HTTP/1.1\r\nHost: b.example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"z" * 200 + b"\r\n\r\n",
        b"x" * 100_000,
    ],
)
async def test_what_is_no_request_gets_a_readable_answer_and_the_end(tmp_path: Path, raw: bytes) -> None:
    async with gates.opened(tmp_path, scope=["*"]) as gate:
        answer = await gate.raw(raw)
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"The gateway does not take this request" in answer


async def test_requests_follow_each_other_on_one_connection(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        one = b"GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\n\r\n" % gate.token.encode()
        assert (await gate.raw(one * 5)).count(b"HTTP/1.1 200") == 5


words = st.sampled_from(
    [b"GET ", b"POST ", b"CONNECT ", b"http://example.com/", b"example.com:443", b"/", b"/anthropic/v1/messages",
     b" HTTP/1.1\r\n", b"Host: example.com\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n",
     b"0\r\n\r\n", b"3\r\nabc\r\n", b"\n", b"Proxy-Authorization: Bearer x\r\n", b"Expect: 100-continue\r\n"]
)  # fmt: skip


@given(st.lists(words | st.binary(max_size=8), max_size=14).map(b"".join))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_dropped_and_nothing_leaves(tmp_path: Path, data: bytes) -> None:
    async def check() -> None:
        async with gates.opened(tmp_path, scope=["*"], resolver=names) as gate:
            answer = await gate.raw(data)
            assert b"HTTP/1.1 200" not in answer
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            assert not gate.provider.asked

    asyncio.run(check())

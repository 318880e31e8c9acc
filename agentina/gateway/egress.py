"""Tunnels, plain HTTP and websockets to hosts a task may reach."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import h11

from agentina import errors
from agentina.gateway import account, requests, rules, streams
from agentina.system import tasks

Resolver = Callable[[str, int], Awaitable[list[str]]]

#: Threads that ask the name service, apart from those that make records durable: one that gives no answer holds a
#: thread for as long as the resolver waits, and most are left to others by the bound for each task.
_threads: Final = concurrent.futures.ThreadPoolExecutor(32, thread_name_prefix="resolve")
#: Seconds for the name service.
_RESOLVE_SECONDS: Final = 10.0
_SWITCHING: Final = 101


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, each once.

    Raises:
        OSError: The name service knows none, or says nothing.

    """
    ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    async with asyncio.timeout(_RESOLVE_SECONDS):
        found = await asyncio.get_running_loop().run_in_executor(_threads, ask)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Egress:
    """Serves what is no call of a model."""

    def __init__(self, resolver: Resolver = resolve) -> None:
        self._resolve = resolver

    async def serve(self, client: streams.Client, request: requests.Request, task: account.Account) -> None:
        """Answer one request, or become a tunnel.

        Raises:
            AgentinaError: ``EGRESS_REFUSED``, or ``PROVIDER_FAILED`` where the host cannot be reached; nothing was
                answered yet.
            Gone: One side broke off.

        """
        assert request.target is not None
        async with task.resolving:
            addresses = await self._judge(request.target, task.grants)
        try:
            reader, writer = await streams.open_first(addresses, request.target.port)
        except OSError as error:
            raise _unreachable(request.target, f"cannot be reached ({_words(error)})") from error
        task.note_reached(request.target)
        server = streams.Server(reader, writer)
        try:
            if request.form is requests.Form.TUNNEL:
                await client.switch(200, [])
                await _tunnel(client, (reader, writer, b""))
            else:
                await _forward(client, request, server)
        finally:
            server.close()

    async def _judge(self, target: rules.Target, grants: rules.Rules) -> list[str]:
        """The addresses that may be connected to."""
        grants.check_target(target)
        try:
            found = await self._resolve(target.host, target.port)
        except OSError as error:
            raise _unreachable(target, f"has no address ({_words(error)})") from error
        return grants.choose_addresses(target, found)


async def _forward(client: streams.Client, request: requests.Request, server: streams.Server) -> None:
    assert request.target is not None
    headers = [(b"host", _host_header(request.target)), *request.passed_on()]
    if request.upgrade == "websocket":
        headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
    else:
        headers.append((b"connection", b"close"))
        headers += _framing(request)
    await server.send_head(request.method, request.path, headers)
    sending = tasks.start(_send_body(client, server), name="request body", on_failure=lambda _: None)
    try:
        try:
            head = await server.head()
        except (streams.Gone, TimeoutError) as error:
            if sending.done() and isinstance(sending.exception(), errors.AgentinaError):
                await sending
            raise _unreachable(request.target, "gave no answer") from error
        if isinstance(head, h11.InformationalResponse):
            await client.switch(_SWITCHING, _switch_headers(head))
            await _tunnel(client, server.raw())
            return
        await _pass_answer(client, head, server.pieces())
        await asyncio.wait([sending])
    finally:
        await tasks.cancel(sending)


async def _send_body(client: streams.Client, server: streams.Server) -> None:
    async for piece in client.body():
        await server.send(piece)
    await server.finish()


async def _pass_answer(client: streams.Client, head: h11.Response, pieces: AsyncIterator[bytes]) -> None:
    await client.start(head.status_code, answer_headers(head))
    try:
        async for piece in pieces:
            await client.send(piece)
    except TimeoutError as error:
        raise streams.Gone from error
    await client.finish()


def answer_headers(head: h11.Response) -> streams.Headers:
    """The fields of an answer that go to the task: those of the message, with its length where it is known."""
    listed = [(bytes(name), bytes(value)) for name, value in head.headers]
    chunked = any(name == b"transfer-encoding" for name, _ in listed)
    length = [(name, value) for name, value in listed if name == b"content-length" and not chunked]
    return requests.end_to_end(listed) + length


async def _tunnel(client: streams.Client, server: tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]) -> None:
    """Pass bytes both ways, those first that came with a head."""
    reader, writer, sent = client.raw()
    server[1].write(sent)
    writer.write(server[2])
    client.carried.received += len(server[2])
    with contextlib.suppress(OSError):
        await streams.pump((reader, writer), server[:2], client.carried)


def _framing(request: requests.Request) -> streams.Headers:
    """How the body is framed on its way on: as it was, in a form of our own writing."""
    if request.header(b"transfer-encoding") is not None:
        return [(b"transfer-encoding", b"chunked")]
    length = request.header(b"content-length")
    return [] if length is None else [(b"content-length", length)]


def _switch_headers(head: h11.InformationalResponse) -> streams.Headers:
    passed = requests.end_to_end([(bytes(name), bytes(value)) for name, value in head.headers])
    return [*passed, (b"connection", b"Upgrade"), (b"upgrade", b"websocket")]


def _host_header(target: rules.Target) -> bytes:
    shown = target.authority if target.port != 80 else target.authority.removesuffix(":80")  # noqa: PLR2004 - http
    return shown.encode("ascii")


def _unreachable(target: rules.Target, problem: str) -> errors.AgentinaError:
    return errors.PROVIDER_FAILED(provider=target.authority, problem=problem)


def _words(error: OSError) -> str:
    return error.strerror or (
        "no answer in time" if isinstance(error, TimeoutError) else str(error) or "no reason given"
    )

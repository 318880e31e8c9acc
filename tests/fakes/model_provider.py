"""Providers of models on a real socket: Anthropic Messages, OpenAI Responses and Chat, streamed and whole.

What it does is said by the scenario in force; what it was asked, and what it billed, is kept. It bills a token for four
bytes of the request, half of it cached, and ``output`` tokens of output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from agentina.gateway import usage
from tests.fakes import deadlines

#: Scenarios that answer with a status, and headers.
_STATUS: Final = {
    "400": (400, ""),
    "401": (401, ""),
    "403": (403, ""),
    "429": (429, ""),
    "429-after": (429, "retry-after: 7\r\n"),
    "500": (500, ""),
    "529": (529, ""),
}
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nrequest-id: req_1\r\ntransfer-encoding: chunked\r\n\r\n"


class Asked:
    """One request."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def api(self) -> str:
        """Whose API it is."""
        if "/v1beta/" in self.path:
            return "gemini"
        return "anthropic" if "/messages" in self.path else "openai"

    @property
    def document(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body) if self.body else {}
        return content


class ModelProvider:
    """Runs on the test's own event loop; use :func:`running`."""

    def __init__(self) -> None:
        self.scenario = "text"
        self.asked: list[Asked] = []
        #: Input, cached input and output of all answers that were complete.
        self.billed = [0, 0, 0]
        self.output = 42
        #: Bytes of text in scenario ``large``; events it goes into.
        self.large = 8 << 20
        self.connections = 0
        #: The number of the request from which on answers are held, whatever the scenario; 0: none.
        self.held_from = 0
        #: Set by a test to let ``held`` answers go on; set by it when one is held.
        self.go_on = asyncio.Event()
        self.holding = asyncio.Event()
        #: What it could not answer, and why.
        self.faults: list[str] = []
        #: Bytes that were written of the present answer.
        self.written = 0
        self.port = 0
        #: The loop it runs on.
        self.loop: asyncio.AbstractEventLoop | None = None

    def let_go(self, *, holds_on: bool = False) -> None:
        """Let held answers go on, and those that come after unless it ``holds_on``; from any thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._let_go, holds_on)

    def _let_go(self, holds_on: bool) -> None:  # noqa: FBT001 - called by the loop, by position
        self.go_on.set()
        if holds_on:
            self.go_on = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        except (AssertionError, KeyError, StopIteration) as error:
            self.faults.append(repr(error))
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await self._body(reader, writer, int(headers.get("content-length", 0)))
        if body is None:
            return False
        asked = Asked(method, path, headers, body)
        self.asked.append(asked)
        self.written = 0
        return await self._answer(asked, writer)

    async def _body(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> bytes | None:
        """A request's body; None: there is no more to this connection."""
        half = await reader.readexactly(size // 2)
        if self.scenario.startswith("upload"):
            self.holding.set()
        if self.scenario == "upload-pauses":
            await self.go_on.wait()
        elif self.scenario == "upload-resets":
            writer.transport.abort()
            return None
        elif self.scenario == "upload-413":
            writer.write(b"HTTP/1.1 413 X\r\ncontent-length: 11\r\n\r\ntoo much: 9")
            # As servers do that want their answer to be read: they shut their side, and read on for a while.
            writer.write_eof()
            await reader.read()
            return None
        return half + await reader.readexactly(size - len(half))

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        if self.scenario in _STATUS:
            status, extra = _STATUS[self.scenario]
            body = json.dumps({"type": "error", "error": {"message": f"no: {status}"}}).encode()
            writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: {len(body)}\r\n\r\n".encode() + body)
        elif self.scenario == "silent":
            await self.go_on.wait()
        elif self.scenario == "close":
            return False
        elif "/count_tokens" in asked.path:
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n{"input_tokens": 9}')
        elif asked.method == "GET":
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"data": []}')
        else:
            return await self._model(asked, writer)
        await writer.drain()
        return True

    async def _model(self, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        billed = self.bill(asked)
        kind = asked.path.partition("?")[0].rsplit("/", 1)[-1]
        streamed = bool(asked.document.get("stream")) or ":streamGenerateContent" in kind
        kind = "gemini" if ":" in kind else kind
        events = self.events(kind, billed.input, billed.cached, asked.document)
        if not streamed:
            body = json.dumps(events[-1]).encode()
            writer.write(HEAD % b"application/json" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            self._bill(billed)
            await writer.drain()
            return True
        writer.write(HEAD % b"text/event-stream")
        for number, event in enumerate(events[:-1]):
            if number == 2 and not await self._trouble(writer):
                return False
            await self._event(writer, event)
        self._bill(billed)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def bill(self, asked: Asked) -> usage.Usage:
        """What it bills for an answer to this."""
        total = len(asked.body) // 4
        return usage.Usage(input=total - total // 2, cached=total // 2, output=self.output)

    def events(self, kind: str, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of an answer, and last the answer of who did not ask for events."""
        return _EVENTS[kind](fresh, cached, self.output, asked)

    async def _trouble(self, writer: asyncio.StreamWriter) -> bool:
        """What happens in mid-stream."""
        if self.scenario == "cut":
            await writer.drain()
            writer.transport.abort()
            return False
        if self.scenario == "held" or 0 < self.held_from <= len(self.asked):
            await writer.drain()
            self.holding.set()
            await self.go_on.wait()
        elif self.scenario == "malformed":
            await self._raw(writer, b'data: {"usage": nonsense\n\n\xff\xfe: "usage" data\r\rdata: "usage"\n\n')
        elif self.scenario == "large":
            filling = json.dumps({"type": "content_block_delta", "delta": {"text": "x" * 16_000}}).encode()
            for _ in range(self.large // 16_000):
                await self._raw(writer, b"event: content_block_delta\ndata: %s\n\n" % filling)
        return True

    async def _event(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        data = event.pop("_raw", None) or json.dumps(event)
        name = f"event: {event['type']}\n" if "type" in event else ""
        await self._raw(writer, f"{name}data: {data}\n\n".encode())

    async def _raw(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        self.written += len(data)

    def _bill(self, used: usage.Usage) -> None:
        self.billed = [self.billed[0] + used.input, self.billed[1] + used.cached, self.billed[2] + used.output]


def _anthropic(fresh: int, cached: int, output: int, _: dict[str, Any]) -> list[dict[str, Any]]:
    usage = {"input_tokens": fresh, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
    return [
        {"type": "message_start", "message": {"id": "msg", "usage": {**usage, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": output}},
        {"type": "message_stop"},
        {"type": "message", "content": [{"type": "tool_use"}], "usage": {**usage, "output_tokens": output}},
    ]


def _responses(fresh: int, cached: int, output: int, _: dict[str, Any]) -> list[dict[str, Any]]:
    usage = {"input_tokens": fresh + cached, "input_tokens_details": {"cached_tokens": cached}, "output_tokens": output}
    items = [{"type": "function_call", "name": "x"}]
    return [
        {"type": "response.created", "response": {"usage": None}},
        {"type": "response.output_item.done", "item": items[0]},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": {"output": items, "usage": usage}},
        {"output": items, "usage": usage},
    ]


def _chat(fresh: int, cached: int, output: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
    usage = {
        "prompt_tokens": fresh + cached, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}
    }  # fmt: skip
    calls = [{"index": 0, "id": "c", "function": {"name": "x"}}]
    told = bool((asked.get("stream_options") or {}).get("include_usage"))
    return [
        {"choices": [{"delta": {"tool_calls": calls}}]},
        {"choices": [{"delta": {"content": "x"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        *([{"choices": [], "usage": usage}] if told else []),
        {"_raw": "[DONE]"},
        {"choices": [{"message": {"tool_calls": calls}}], "usage": usage},
    ]


def _gemini(fresh: int, cached: int, output: int, _: dict[str, Any]) -> list[dict[str, Any]]:
    usage = {
        "promptTokenCount": fresh + cached, "cachedContentTokenCount": cached, "candidatesTokenCount": output - 2,
        "thoughtsTokenCount": 2, "totalTokenCount": fresh + cached + output,
    }  # fmt: skip
    call = {"content": {"role": "model", "parts": [{"functionCall": {"name": "x", "args": {}}}]}, "index": 0}
    early = {**usage, "candidatesTokenCount": 1}
    return [
        {"candidates": [{"content": {"parts": [{"text": "x"}]}, "index": 0}], "usageMetadata": early},
        {"candidates": [call], "usageMetadata": early},
        {"candidates": [{"finishReason": "STOP", "index": 0}], "usageMetadata": usage},
        {"candidates": [{**call, "finishReason": "STOP"}], "usageMetadata": usage},
    ]


_EVENTS: Final = {"messages": _anthropic, "responses": _responses, "completions": _chat, "gemini": _gemini}


@contextlib.asynccontextmanager
async def running(
    provider: ModelProvider | None = None, *, listen: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[ModelProvider]:
    """A provider that listens on a free port of loopback, or of another address."""
    provider = provider or ModelProvider()
    connections: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        connections.add(current)
        try:
            await provider.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            connections.discard(current)

    provider.loop = asyncio.get_running_loop()
    server = await asyncio.start_server(connected, listen, 0, ssl=tls)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@contextlib.contextmanager
def in_thread(
    provider: ModelProvider, *, listen: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[None]:
    """The same in a thread of its own, for tests that block."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with running(provider, listen=listen, tls=tls):
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert ready.wait(deadlines.HANG)
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()

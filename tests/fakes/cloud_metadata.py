"""The metadata services of three clouds on one real socket, each as strict about headers and tokens as the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import urllib.parse
from typing import Any, Self

Reply = tuple[int, dict[str, str], bytes]

_NOT_FOUND: Reply = (404, {}, b"not found")


class Metadata:
    """Start with ``async with``; set its attributes."""

    def __init__(self, *, listen: str = "127.0.0.1") -> None:
        self._listen = listen
        self.requests: list[str] = []
        # Google
        self.preempted = False
        self.maintenance = "NONE"
        # Amazon
        self.action: dict[str, str] | None = None
        self.advice: dict[str, str] | None = None
        self.tokens: set[str] = set()
        # Azure
        self.name = "worker-1"
        self.events: list[dict[str, Any]] = []
        #: Sent instead of every answer: raw bytes, and then the connection is closed.
        self.nonsense: bytes | None = None
        self._version = 0
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._listen)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def change(self, **values: Any) -> None:
        """Set attributes, and answer the requests that wait for a change."""
        for name, value in values.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            method, target, _ = first.split()
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            self.requests.append(f"{method} {target}")
            status, extra, body = await self._answer(method, target, headers)
            shown = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
            answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{shown}\r\n".encode() + body
            writer.write(answer if self.nonsense is None else self.nonsense)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, method: str, target: str, headers: dict[str, str]) -> Reply:
        if target.startswith("/computeMetadata/"):
            return await self._google(target, headers)
        if target.startswith("/metadata/"):
            return self._azure(target, headers)
        return self._amazon(method, target, headers)

    async def _google(self, target: str, headers: dict[str, str]) -> Reply:
        if headers.get("metadata-flavor") != "Google":
            return 403, {}, b"Missing Metadata-Flavor:Google header."
        path, _, query = target.partition("?")
        options = dict(urllib.parse.parse_qsl(query))
        if options.get("wait_for_change") == "true" and options.get("last_etag") == f"e{self._version}":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), float(options["timeout_sec"]))
        values = {"preempted": str(self.preempted).upper(), "maintenance-event": self.maintenance}
        value = values.get(path.removeprefix("/computeMetadata/v1/instance/"))
        flavor = {"Metadata-Flavor": "Google", "ETag": f"e{self._version}"}
        return _NOT_FOUND if value is None else (200, flavor, value.encode())

    def _amazon(self, method: str, target: str, headers: dict[str, str]) -> Reply:
        if (method, target) == ("PUT", "/latest/api/token"):
            if not re.fullmatch(r"[0-9]+", headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")):
                return 400, {}, b""
            token = f"token-{len(self.requests)}=="
            self.tokens = {token}
            return 200, {}, token.encode()
        if headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return 401, {}, b""
        documents = {
            "/latest/meta-data/spot/instance-action": self.action,
            "/latest/meta-data/events/recommendations/rebalance": self.advice,
        }
        document = documents.get(target)
        return _NOT_FOUND if document is None else (200, {}, json.dumps(document).encode())

    def _azure(self, target: str, headers: dict[str, str]) -> Reply:
        if headers.get("metadata") != "true" or "api-version=" not in target:
            return 400, {}, b'{"error": "Bad request"}'
        if target.startswith("/metadata/instance/compute?"):
            return 200, {}, json.dumps({"name": self.name, "location": "westus"}).encode()
        if target.startswith("/metadata/scheduledevents?"):
            return 200, {}, json.dumps({"DocumentIncarnation": self._version, "Events": self.events}).encode()
        return _NOT_FOUND

"""The ASGI application: finds the route, checks who calls, reads the bounded body, calls the handler, answers.

Plain ASGI, because these few lines are all that is needed of a framework and a held poll costs half as much memory.
Every error becomes the catalogue's JSON; what is not in the catalogue becomes ``INTERNAL`` with a number that is found
again in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.control import plane
from agentina.control.api import access, openapi, routing
from agentina.control.services import refusals, uploads
from agentina.protocol import inputs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Key in ``scope["extensions"]`` of the function that registers what to do when the connection breaks.
CONNECTION_LOST: Final = "agentina.connection_lost"

_JSON: Final = b"application/json"

_log = logging.getLogger(__name__)


class _GoneError(Exception):
    """The client went away before its request was complete."""


class Application:
    """Serves the route table."""

    def __init__(self, control: plane.Plane, routes: list[routing.Route]) -> None:
        self._control = control
        self._uploads = uploads.Uploads(control)
        self.access = access.Access(control)
        self._refusals = refusals.Refusals(control)
        self._table = routing.Table([*routes, self._schema_route()])
        self._decoders = {id(route): msgspec.json.Decoder(route.request) for route in routes if _is_decoded(route)}
        self._encoder = msgspec.json.Encoder()
        self._body_bytes = 0
        self._request_prefix = secrets.token_hex(4)
        self._request_numbers = itertools.count(1)
        self._schema = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        try:
            reply = await self._answer(scope, receive)
        except _GoneError:
            return
        except errors.AgentinaError as error:
            reply = self._error(error)
        except Exception:  # noqa: BLE001 - the last line of defence: logged with a number the caller is given
            incident = secrets.token_hex(4)
            _log.exception("incident %s: %s %.200s", incident, scope["method"], scope["path"])
            reply = self._error(errors.INTERNAL(incident=incident))
        # uvicorn closes the connection of an answer that stays incomplete.
        with contextlib.suppress(TimeoutError):
            await self._send(reply, send, is_head=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive) -> routing.Reply:
        route, parameters = self._table.find("GET" if scope["method"] == "HEAD" else scope["method"], scope["path"])
        headers = dict(scope["headers"])
        call = routing.Call(
            control=self._control, uploads=self._uploads, parameters=parameters,
            query=routing.parse_query(route, scope["query_string"]), body=None, headers=headers,
            on_lost=scope.get("extensions", {}).get(CONNECTION_LOST, _ignore),
        )  # fmt: skip
        try:
            return await self._serve(route, call, receive)
        except errors.AgentinaError as error:
            if route.auth != "agent":
                await self._refusals.record(
                    error, act=route.act, operator=call.operator, subject="/".join(parameters.values()),
                    source=(scope.get("client") or ("",))[0],
                )  # fmt: skip
            raise

    async def _serve(self, route: routing.Route, call: routing.Call, receive: Receive) -> routing.Reply:
        if route.auth == "agent":
            call.agent = self.access.agent(call.headers.get(b"authorization"))
        elif route.auth != "public":
            call.operator = self.access.operator(call.headers.get(b"authorization"))
            access.check_role(call.operator, route.auth)
        if route.request is not None:
            call.body = self._decode(route, await self._read(route, call.headers, receive))
        result = await route.handler(call)
        if isinstance(result, routing.Reply):
            return result
        if result is None:
            return routing.Reply(body=b"", status=route.status)
        return routing.Reply(body=self._encoder.encode(result), content_type=_JSON, status=route.status)

    # --- bodies ------------------------------------------------------------------------------------------------------

    async def _read(self, route: routing.Route, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body, counted while it arrives.

        Raises:
            AgentinaError: ``INPUT_TOO_LARGE``, ``OVERLOADED``, ``INPUT_INVALID`` (too slow).

        """
        announced = headers.get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() and len(announced) < 16 else 0  # noqa: PLR2004 - more is too much
        if size > route.body_limit:
            raise errors.INPUT_TOO_LARGE(where="body", size=size, limit=route.body_limit)
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            # The whole of a small request arrives at once.
            return _bounded(route, message.get("body", b""))
        if self._body_bytes > self._control.settings.max_body_bytes:
            raise errors.OVERLOADED(what="request bodies", retry_after=5)
        self._body_bytes += route.body_limit
        try:
            async with asyncio.timeout(self._control.settings.body_seconds):
                return await _read_rest(route, message, receive)
        except TimeoutError as error:
            raise errors.INPUT_INVALID(where="body", problem="it took too long to arrive") from error
        finally:
            self._body_bytes -= route.body_limit

    def _decode(self, route: routing.Route, body: bytes) -> Any:
        decoder = self._decoders.get(id(route))
        if decoder is None:
            return body
        if not body and type(None) in getattr(route.request, "__args__", ()):
            return None
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise inputs.explain(error, route.request, "body") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise errors.INPUT_UNREADABLE(where="body", problem=str(error) or "nested too deeply") from error

    # --- answers -----------------------------------------------------------------------------------------------------

    def _error(self, error: errors.AgentinaError) -> routing.Reply:
        document = errors.to_wire(error)
        request_id = f"{self._request_prefix}-{next(self._request_numbers)}"
        document["error"]["request_id"] = request_id
        headers = [(b"agentina-request", request_id.encode())]
        if "retry_after" in error.context:
            headers.append((b"retry-after", b"%d" % int(error.context["retry_after"])))
        if error.entry.status == 401:  # noqa: PLR2004 - RFC 9110: a 401 names the scheme
            headers.append((b"www-authenticate", b"Bearer"))
        return routing.Reply(
            body=self._encoder.encode(document), content_type=_JSON, status=error.entry.status, headers=headers
        )

    async def _send(self, reply: routing.Reply, send: Send, *, is_head: bool) -> None:
        headers = [
            (b"content-type", reply.content_type),
            (b"agentina-time", b"%d" % self._control.clock.wall_ms()),
            *reply.headers,
        ]
        if isinstance(reply.body, bytes):
            if reply.status != 204:  # noqa: PLR2004 - RFC 9110: no content, no length
                headers.append((b"content-length", b"%d" % len(reply.body)))
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if is_head else reply.body})
            return
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if not is_head:
            async with contextlib.aclosing(reply.body) as pieces:
                async for piece in pieces:
                    # A reader that stopped reading must not hold its file, and its place, for ever.
                    async with asyncio.timeout(self._control.settings.body_seconds):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _schema_route(self) -> routing.Route:
        async def schema(_: routing.Call) -> routing.Reply:
            if not self._schema:
                self._schema = self._encoder.encode(openapi.document(self._table.routes))
            return routing.Reply(body=self._schema, content_type=_JSON)

        return routing.Route(
            method="GET", path="/schema", handler=schema, summary="This description", auth="public",
            answer=dict[str, Any],
        )  # fmt: skip


def _is_decoded(route: routing.Route) -> bool:
    # The job document is decoded by its own parser, which accepts sizes and durations as text.
    return route.request is not None and route.request is not bytes and route.path != "/v1/jobs"


def _bounded(route: routing.Route, body: bytes) -> bytes:
    if len(body) > route.body_limit:
        raise errors.INPUT_TOO_LARGE(where="body", size=len(body), limit=route.body_limit)
    return body


async def _read_rest(route: routing.Route, message: MutableMapping[str, Any], receive: Receive) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > route.body_limit:
            raise errors.INPUT_TOO_LARGE(where="body", size=len(body), limit=route.body_limit)
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()


def _ignore(_: Callable[[], None]) -> None:
    """Without the server's help a broken connection is noticed when the answer is sent."""

"""Calls of models: admitted by the task's ledger, sent with the host's key, metered as the answer passes.

docs/explanation/gateway.md has the states, and what each end is charged. Nothing is repeated here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from typing import Final

import h11

from agentina import errors
from agentina.gateway import account, budgets, calls, egress, record, requests, settings, streams, usage
from agentina.system import clock

#: Seconds between pings to a task that waits, until one gives up waiting for other calls, and for the operator.
PING_SECONDS: Final = 15.0
_WAIT_SECONDS: Final = 600.0
_PARK_SECONDS: Final = 86_400.0
#: Idle connections kept for each provider, and seconds for which one is used again.
_MAX_IDLE: Final = 8
_IDLE_SECONDS: Final = 15.0
#: Largest error answer passed on, in bytes.
_MAX_ERROR: Final = 1 << 20
_NOT_FOUND: Final = 404
_UPGRADE_REQUIRED: Final = 426
_LIMITED: Final = 429
_JSON: Final = b"application/json"
#: Ends of an answer that came whole.
_WHOLE: Final = frozenset({calls.End.COMPLETED, calls.End.UNMETERED})
#: What a task says about itself or about encodings stays here: the key is ours, and answers must be readable.
_OURS: Final = frozenset(
    {b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"cookie", b"accept-encoding", b"content-encoding"}
)

_log = logging.getLogger(__name__)


class Answer:
    """An answer to the task, which may have begun with pings before anything was decided."""

    def __init__(self, client: streams.Client, api: usage.Api) -> None:
        self.client = client
        self._api = api
        self._begun = False

    async def ping(self) -> None:
        """Keep the task waiting."""
        if not calls.ping(self._api):
            return
        if not self._begun:
            self._begun = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self.client.start(200, headers)
        await self.client.send(calls.ping(self._api))

    async def pass_on(self, head: h11.Response, piece: bytes) -> None:
        """Pass on a piece of a good answer, after its head."""
        if not self._begun:
            self._begun = True
            await self.client.start(head.status_code, egress.answer_headers(head), piece)
        elif piece:
            await self.client.send(piece)

    async def finish(self, head: h11.Response, last: bytes) -> None:
        """Pass on the last piece of a good answer, and its end, at once."""
        if self._begun:
            await self.client.finish(last)
        else:
            await self.client.start(head.status_code, egress.answer_headers(head), last, is_whole=True)

    async def reject(self, status: int, body: bytes, headers: streams.Headers) -> None:
        """Pass on an answer that is an error, whole."""
        if self._begun:
            await self.refuse(errors.PROVIDER_FAILED(provider="of this model", problem=f"answered {status}"))
            return
        await self.client.start(status, [*headers, (b"content-length", b"%d" % len(body))], body, is_whole=True)

    async def refuse(
        self, error: errors.AgentinaError, *, status: int = 0, extra: streams.Headers | None = None
    ) -> None:
        """Refuse, in words and with a status that ends a CLI."""
        if self._begun:
            await self.client.finish(calls.error_event(self._api, error))
            return
        body = calls.error_body(self._api, error)
        await self.client.answer(status or calls.final_status(self._api), body, media=_JSON, extra=extra)


class Models:
    """Serves calls of models for all tasks."""

    def __init__(
        self, loaded: settings.Loaded, *, clocks: clock.Clock, stall_seconds: float = streams.PIECE_SECONDS
    ) -> None:
        self._loaded = loaded
        self._clock = clocks
        self._stall = stall_seconds
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._idle: dict[settings.Source, list[tuple[streams.Server, float]]] = {}
        #: The gateway's process ends: it breaks calls off, and not their tasks.
        self.is_ending = False

    def close(self) -> None:
        """Close idle connections."""
        for kept in self._idle.values():
            for server, _ in kept:
                server.close()
        self._idle.clear()

    async def serve(self, client: streams.Client, request: requests.Request, task: account.Account) -> None:
        """Answer one request for a path of the gateway.

        Raises:
            AgentinaError: It was refused before anything was answered.
            Gone: One side broke off.

        """
        found = calls.route(request.path)
        if found is None:
            raise errors.GATEWAY_REQUEST_INVALID(problem=f"there is nothing at {request.path[:200]!r}")
        route, query = found
        if request.upgrade:
            # Measured: the one answer after which Codex goes on without websockets at once.
            await client.answer(_UPGRADE_REQUIRED, b'{"error":{"message":"no websockets here"}}', media=_JSON)
            return
        async with task.holding(min(request.most_bytes, calls.MAX_REQUEST)):
            body = await client.whole_body(calls.MAX_REQUEST)
            if request.method != route.method or request.header(b"content-encoding") not in {None, b"identity"}:
                raise errors.GATEWAY_REQUEST_INVALID(problem=f"expected {route.method} with a plain body")
            call = _Call(self, client, request, task, route, query, body)
            # The task going away must end the call: a provider bills what it goes on to generate.
            await client.while_there(call.run())

    async def connect(self, source: settings.Source) -> streams.Server:
        """A connection to a provider: one that is kept, else a new one."""
        kept = self._idle.get(source, [])
        while kept:
            server, since = kept.pop()
            if self._clock.boot() - since < _IDLE_SECONDS and server.is_open:
                return server
            server.close()
        found = await egress.resolve(source.target.host, source.target.port)
        tls = self._context(source.provider.ca_file) if source.tls else None
        return await streams.connect(found, source.target.port, tls=tls, name=source.target.host)

    def keep(self, source: settings.Source, server: streams.Server) -> None:
        """Use a connection again, if it can be."""
        kept = self._idle.setdefault(source, [])
        if server.renew() and len(kept) < _MAX_IDLE:
            kept.append((server, self._clock.boot()))
        else:
            server.close()

    def _context(self, ca_file: str) -> ssl.SSLContext:
        context = self._contexts.get(ca_file)
        if context is None:
            context = self._contexts[ca_file] = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if ca_file:
                context.load_verify_locations(ca_file)
        return context

    def replace(self, loaded: settings.Loaded) -> None:
        """Use other providers, keys and prices from the next call on."""
        self.close()
        self._contexts.clear()
        self._loaded = loaded

    @property
    def loaded(self) -> settings.Loaded:
        """Providers and prices."""
        return self._loaded

    @property
    def stall_seconds(self) -> float:
        """Seconds a provider may be silent."""
        return self._stall

    def now(self) -> float:
        """CLOCK_BOOTTIME seconds."""
        return self._clock.boot()


class _Call:
    """One call, from its decision to its end."""

    def __init__(  # noqa: PLR0917 - private, called once
        self,
        models: Models,
        client: streams.Client,
        request: requests.Request,
        task: account.Account,
        route: calls.Route,
        query: str,
        body: bytes,
    ) -> None:
        self._models = models
        self._task = task
        self._request = request
        self._route = route
        self._path = route.path + query
        self._body = body
        self._answer = Answer(client, route.api)
        #: The provider may have had all of the request: of a part of one nothing is billed.
        self._sent = False
        #: How it ends, as far as is known: until the answer is over the task may go away.
        self._end = calls.End.ABANDONED
        #: A good answer's head, and the last piece of it, which goes when its end is durable.
        self._last: tuple[h11.Response, bytes] | None = None

    async def run(self) -> None:
        if self._route.is_free:
            await self._run_free()
            return
        wish = calls.understand(self._route.api, self._body, self._route)
        nudge = self._task.nudge
        if nudge and not calls.goes_on(self._route.api, wish, self._body):
            nudge = ""
        wish = wish._replace(size=wish.size + len(nudge.encode()))
        try:
            source = self._models.loaded.find(self._route.api, wish.model)
            row = self._models.loaded.prices.find(wish.model)
            price = row.price if row is not None and wish.is_standard else None
            asked = wish.priced(price)
            self._free_key(source)
            admitted = await self._admit(wish, asked)
        except errors.AgentinaError as error:
            self._task.note_refusal(error)
            await self._answer.refuse(error, status=_status(error), extra=_retry_header(error))
            return
        body = calls.rewrite(self._route.api, wish, self._body, output=admitted.output, asked=asked.output, nudge=nudge)
        meter = usage.Meter(self._route.api, streamed=wish.streamed)
        try:
            await self._exchange(source, body, meter)
        finally:
            if self._end is calls.End.ABANDONED and self._models.is_ending:
                self._end = calls.End.INTERRUPTED
            heard = meter if meter.size else None
            charge = calls.charge_of(self._end, heard, admitted.reserved, price) if self._sent else None
            window = None if row is None else row.price.context_window
            self._task.settle(admitted.number, self._end, charge, self._filled(wish, meter, window or 0))
        if self._end in _WHOLE:
            if nudge:
                self._task.note_nudged(nudge)
            await self._task.sync()
        await self._finish()

    def _filled(self, wish: calls.Wish, meter: usage.Meter, window: int) -> record.Filled | None:
        """How full the context is of the conversation it is part of; None: that was not told, or there is none."""
        if self._end is not calls.End.COMPLETED:
            return None
        name = calls.conversation(self._route.api, wish)
        return record.Filled(conversation=name, tokens=meter.usage.given, window=window) if name else None

    async def _finish(self) -> None:
        """End an answer as it ended at the provider."""
        if self._last is not None:
            await self._answer.finish(*self._last)
        elif self._end in {calls.End.CUT, calls.End.STALLED}:
            self._answer.client.abort()
            raise streams.Gone

    # --- before it is sent -------------------------------------------------------------------------------------------

    def _free_key(self, source: settings.Source) -> None:
        """Make sure that one of the provider's keys may be used now.

        Raises:
            AgentinaError: ``PROVIDER_FAILED``.

        """
        key = source.key(self._models.now())
        seconds = key.brake.seconds(self._models.now())
        if seconds <= 0:
            return
        if key.brake.status in {401, 403}:
            raise _key_refused(source)
        problem = f"{key.brake.story} and is left alone for another {math.ceil(seconds)} s"
        raise errors.PROVIDER_FAILED(provider=source.provider.name, problem=problem, retry_after=math.ceil(seconds))

    async def _admit(self, wish: calls.Wish, asked: budgets.Call) -> budgets.Admitted:
        """Wait until the budget lets the call through.

        Raises:
            AgentinaError: ``BUDGET_EXHAUSTED``, ``MODEL_REFUSED``, or the record cannot be written.

        """
        try:
            return await self._wait_for_room(wish, asked)
        finally:
            self._parks("")

    def _parks(self, reason: str) -> None:
        """Tell of being held for a budget, or of not being held any more."""
        self._task.park(self, reason)

    async def _wait_for_room(self, wish: calls.Wish, asked: budgets.Call) -> budgets.Admitted:
        began = waits_since = self._models.now()
        while True:
            changed = self._task.changed
            decision = self._task.ask(asked, wish.model)
            if isinstance(decision, budgets.Admitted):
                return decision
            if isinstance(decision, budgets.Unpriced):
                what = "its price" if wish.is_standard else "the price of being served before others"
                problem = f"{what} is not known, and the job's budget is in money"
                raise errors.MODEL_REFUSED(model=wish.model, problem=problem, reason="unpriced")
            now = self._models.now()
            refusal = errors.BUDGET_EXHAUSTED(problem=decision.detail, reason=decision.reason)
            if self._task.closing.is_set():
                raise refusal
            is_used_up = isinstance(decision, budgets.Exhausted)
            if is_used_up:
                waits_since = now  # for what it waits for after this, such as a share of the new day, it does so anew
            if is_used_up or now - waits_since >= _WAIT_SECONDS:
                self._task.note_refusal(refusal)
                if not (decision.parks and wish.streamed and now - began < _PARK_SECONDS):
                    raise refusal
                self._parks(decision.detail)
            await self._hold(changed, pings=wish.streamed)

    async def _hold(self, changed: asyncio.Event, *, pings: bool) -> None:
        try:
            async with asyncio.timeout(PING_SECONDS):
                await changed.wait()
        except TimeoutError:
            if pings:
                await self._answer.ping()

    # --- at the provider ---------------------------------------------------------------------------------------------

    async def _exchange(self, source: settings.Source, body: bytes, meter: usage.Meter | None) -> None:
        """Send the request and pass the answer on; a good one is left for the caller to finish."""
        key = source.key(self._models.now())
        try:
            server = await self._models.connect(source)
        except OSError as error:
            key.brake.note(0, self._models.now())
            await self._unreachable(source, f"cannot be reached ({error.strerror or type(error).__name__})")
            return
        try:
            try:
                head = await self._ask(server, source, key, body)
            except (streams.Gone, TimeoutError) as problem:
                key.brake.note(0, self._models.now())
                await self._unreachable(source, self._silence(server, problem))
                return
            key.brake.note(head.status_code, self._models.now(), retry_after=_retry_after(head))
            if head.status_code >= streams.FIRST_ERROR:
                await self._reject(source, head, server)
            else:
                self._end = await self._pass(head, server, meter)
        finally:
            self._sent = server.has_request
            if self._end in _WHOLE:
                self._models.keep(source, server)
            else:
                server.close()

    async def _ask(
        self, server: streams.Server, source: settings.Source, key: settings.Key, body: bytes
    ) -> h11.Response:
        headers = [
            (b"host", source.authority.encode("ascii")),
            *self._request.passed_on(without=_OURS),
            (b"accept-encoding", b"identity"),
            source.authorize(key),
        ]
        if self._route.method == "POST":
            headers.append((b"content-length", b"%d" % len(body)))
        path, seconds = source.prefix + self._path, self._models.stall_seconds
        head = await server.ask(self._route.method, path, headers, body, seconds=seconds)
        if not isinstance(head, h11.Response):
            raise streams.Gone
        return head

    async def _pass(self, head: h11.Response, server: streams.Server, meter: usage.Meter | None) -> calls.End:
        """Pass on an answer but for the piece it ends with: without its end that would be of no use to the task."""
        pieces = server.pieces(seconds=self._models.stall_seconds)
        try:
            piece = server.ready()
        except streams.Gone:
            return calls.End.CUT
        while True:
            if meter is not None:
                meter.feed(piece)
            if server.has_ended():
                break
            await self._answer.pass_on(head, piece)
            try:
                piece = await anext(pieces, b"")
            except TimeoutError:
                return calls.End.STALLED
            except streams.Gone:
                return calls.End.CUT
        self._last = head, piece
        if meter is None:
            return calls.End.COMPLETED
        meter.close()
        return calls.End.COMPLETED if meter.final else calls.End.UNMETERED

    async def _reject(self, source: settings.Source, head: h11.Response, server: streams.Server) -> None:
        status = head.status_code
        self._end = _end_of(status, _retry_after(head))
        if self._end is calls.End.KEY_REFUSED:
            # Its body may tell parts of the key; 401 makes CLIs try again for minutes.
            error = _key_refused(source)
            self._task.note_refusal(error)
            await self._answer.refuse(error)
            return
        body = b""
        try:
            async for piece in server.pieces(seconds=self._models.stall_seconds):
                body += piece
                if len(body) > _MAX_ERROR:
                    break
        except (streams.Gone, TimeoutError):
            pass  # what there is of an error is better than none
        length = frozenset({b"content-length"})
        await self._answer.reject(status, body[:_MAX_ERROR], _without(egress.answer_headers(head), length))

    def _silence(self, server: streams.Server, problem: Exception) -> str:
        """Why there is no answer, as the end of a sentence about the provider."""
        if server.has_request:
            return "gave no answer"
        if isinstance(problem, streams.Stuck):
            return f"stopped in the middle of the request, and took no more of it for {self._models.stall_seconds:g} s"
        return "broke off in the middle of the request"

    async def _unreachable(self, source: settings.Source, problem: str) -> None:
        self._end = calls.End.UNREACHABLE
        error = errors.PROVIDER_FAILED(provider=source.provider.name, problem=problem)
        self._task.note_refusal(error, source.provider.name)
        await self._answer.refuse(error, status=error.entry.status)

    async def _run_free(self) -> None:
        """Counting tokens and listing models: no budget, the same key."""
        model = None
        if self._route.method == "POST":
            model = self._route.model or calls.understand(self._route.api, self._body).model
        try:
            source = self._models.loaded.find(self._route.api, model)
            self._free_key(source)
        except errors.AgentinaError as error:
            self._task.note_refusal(error)
            await self._answer.refuse(error, status=_status(error), extra=_retry_header(error))
            return
        await self._exchange(source, self._body, None)
        await self._finish()


def _end_of(status: int, retry_after: float | None) -> calls.End:
    """How a call ended that was answered with an error."""
    if status in {401, 403}:
        return calls.End.KEY_REFUSED
    if status in {_LIMITED, 529} or (status == 503 and retry_after is not None):  # noqa: PLR2004 - see brakes
        return calls.End.LIMITED
    return calls.End.FAILED if status >= 500 else calls.End.REJECTED  # noqa: PLR2004 - RFC 9110: the server's fault


def _key_refused(source: settings.Source) -> errors.AgentinaError:
    return errors.PROVIDER_FAILED(
        provider=source.provider.name, problem="refuses the key this host has for it", reason="key"
    )


def _status(error: errors.AgentinaError) -> int:
    """429 while a provider is limited, so that a CLI waits; else the status that ends it (0)."""
    return _LIMITED if "retry_after" in error.context else 0


def _retry_header(error: errors.AgentinaError) -> streams.Headers:
    seconds = error.context.get("retry_after")
    return [] if seconds is None else [(b"retry-after", b"%d" % seconds)]


def _retry_after(head: h11.Response) -> float | None:
    """Seconds the provider asked for; a date is too rare to be read."""
    value = next((bytes(value) for name, value in head.headers if name == b"retry-after"), b"")
    return float(value[:9]) if value.isdigit() else None


def _without(headers: streams.Headers, names: frozenset[bytes]) -> streams.Headers:
    return [(name, value) for name, value in headers if name not in names]

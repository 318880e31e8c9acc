"""Calls of models: which paths there are, what a request asks for, how one ends, how a refusal is worded. Pure."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from agentina import errors
from agentina.gateway import budgets, prices, usage

#: Largest request, in bytes: what Anthropic takes; OpenAI takes less.
MAX_REQUEST: Final = 32 << 20
#: Most values in one, by the signs that stand before them: each takes some 70 bytes of memory, and two of a request. It
#: is more than the largest contexts have tokens. Bytes of a request up to which nobody counts.
MAX_VALUES: Final = 2_000_000
_FEW: Final = 1 << 20
_MAX_MODEL: Final = 200
#: Where requests say how soon they want to be served (OpenAI, Gemini; Anthropic), and what costs no more than usual.
_TIERS: Final = ("service_tier", "serviceTier", "speed")
_STANDARD: Final = (None, "auto", "default", "standard", "standard_only", "flex", "batch")
_GEMINI: Final = re.compile(
    r"/gemini(?P<path>/v1(?:beta)?/models(?:/(?P<model>[A-Za-z0-9._-]{1,200}))?)"
    r"(?::(?P<verb>generateContent|streamGenerateContent|countTokens))?"
)
_MODEL_ID: Final = re.compile(r"/(anthropic|openai)/v1/models(/[A-Za-z0-9._:@-]{1,200})?")


class End(enum.Enum):
    """How a call ended; docs/explanation/gateway.md says when, what the task sees and what is charged."""

    COMPLETED = "completed"
    UNMETERED = "unmetered"
    REJECTED = "rejected"
    LIMITED = "limited"
    KEY_REFUSED = "key-refused"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    CUT = "cut"
    STALLED = "stalled"
    ABANDONED = "abandoned"
    INTERRUPTED = "interrupted"


#: Ends after which the provider billed nothing.
FREE: Final = frozenset({End.REJECTED, End.LIMITED, End.KEY_REFUSED, End.FAILED})


class Route(NamedTuple):
    """A path of the gateway that leads to a provider."""

    api: usage.Api
    #: The provider's path below its address.
    path: str
    method: str = "POST"
    #: Costs nothing, so it needs no budget.
    is_free: bool = False
    #: The model, and that events are asked for, where the path says so and not the body.
    model: str = ""
    is_streamed: bool = False


_ROUTES: Final = {
    "/anthropic/v1/messages": Route(usage.Api.ANTHROPIC, "/v1/messages"),
    "/anthropic/v1/messages/count_tokens": Route(usage.Api.ANTHROPIC, "/v1/messages/count_tokens", is_free=True),
    "/openai/v1/responses": Route(usage.Api.RESPONSES, "/v1/responses"),
    "/openai/v1/chat/completions": Route(usage.Api.CHAT, "/v1/chat/completions"),
}


def route(path: str) -> tuple[Route, str] | None:
    """Where a path (with its query) leads, and the query; None: nowhere."""
    plain, mark, query = path.partition("?")
    found = _ROUTES.get(plain)
    if found is None and (match := _MODEL_ID.fullmatch(plain)) is not None:
        api = usage.Api.ANTHROPIC if match[1] == "anthropic" else usage.Api.CHAT
        found = Route(api, f"/v1/models{match[2] or ''}", "GET", is_free=True)
    if found is None and (match := _GEMINI.fullmatch(plain)) is not None:
        found = _gemini_route(match["path"], match["model"] or "", match["verb"] or "", query)
    return None if found is None else (found, mark + query)


def _gemini_route(path: str, model: str, verb: str, query: str) -> Route | None:
    if not verb:
        return Route(usage.Api.GEMINI, path, "GET", is_free=True)
    is_streamed = verb == "streamGenerateContent"
    # Without it the stream is one long JSON list: the end of it alone would tell what was used.
    if not model or (is_streamed and "alt=sse" not in query.split("&")):
        return None
    return Route(
        usage.Api.GEMINI, f"{path}:{verb}", is_free=verb == "countTokens", model=model, is_streamed=is_streamed
    )


class Wish(NamedTuple):
    """What a request asks for."""

    model: str
    streamed: bool
    #: Most output it names; None: it leaves that to the provider.
    output: int | None
    #: The least that makes sense: a thinking budget has to fit.
    least: int
    body: dict[str, Any]
    size: int

    @property
    def is_standard(self) -> bool:
        """Whether it costs what the table says: to be served before others costs a multiple, which no table has."""
        return all(self.body.get(name) in _STANDARD for name in _TIERS)

    def priced(self, price: prices.Price | None) -> budgets.Call:
        """As the ledger is asked."""
        most = (None if price is None else price.max_output) or budgets.DEFAULT_OUTPUT
        return budgets.Call(
            input=budgets.estimate_input(self.size), output=self.output or most, least=self.least, price=price
        )


class _Thinking(msgspec.Struct):
    budget_tokens: int = 0


class _GeminiThinking(msgspec.Struct, rename="camel"):
    thinking_budget: int = 0


class _GeminiConfig(msgspec.Struct, rename="camel"):
    max_output_tokens: int | None = None
    candidate_count: int | None = None
    thinking_config: _GeminiThinking | None = None


class _Request(msgspec.Struct):
    model: str
    generation_config: _GeminiConfig | None = msgspec.field(name="generationConfig", default=None)
    stream: bool | None = False
    max_tokens: int | None = None
    max_output_tokens: int | None = None
    max_completion_tokens: int | None = None
    #: Answers to one request (Chat Completions).
    n: int | None = None
    thinking: _Thinking | None = None


def understand(api: usage.Api, body: bytes, route: Route | None = None) -> Wish:
    """Read the request for a model; the route names it where the body does not.

    Raises:
        AgentinaError: ``GATEWAY_REQUEST_INVALID``.

    """
    if len(body) > _FEW and sum(map(body.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise errors.GATEWAY_REQUEST_INVALID(problem=f"a request of more than {MAX_VALUES} values")
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
        named = {"model": route.model, "stream": route.is_streamed} if route is not None and route.model else {}
        request = msgspec.convert({**document, **named}, _Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.GATEWAY_REQUEST_INVALID(problem=f"not a request for a model ({str(error)[:200]})") from error
    if not 0 < len(request.model) <= _MAX_MODEL or not request.model.isprintable():
        raise errors.GATEWAY_REQUEST_INVALID(problem="the model has no usable name")
    config = request.generation_config if api is usage.Api.GEMINI and request.generation_config else _GeminiConfig()
    output = {
        usage.Api.ANTHROPIC: request.max_tokens,
        usage.Api.RESPONSES: request.max_output_tokens,
        usage.Api.CHAT: request.max_completion_tokens or request.max_tokens,
        usage.Api.GEMINI: config.max_output_tokens,
    }[api]
    if api is usage.Api.GEMINI:
        _check_gemini(document)
    answers = {usage.Api.CHAT: request.n, usage.Api.GEMINI: config.candidate_count}.get(api)
    if (answers or 1) > 1:
        # Each may be as long as the output that is reserved for the call.
        raise errors.GATEWAY_REQUEST_INVALID(problem="several answers to one request are not metered")
    if document.get("background") or (output is not None and output < 1):
        raise errors.GATEWAY_REQUEST_INVALID(problem="no output at all, or an answer in the background, is not metered")
    thinking = request.thinking.budget_tokens if request.thinking is not None else 0
    if config.thinking_config is not None:
        thinking = config.thinking_config.thinking_budget
    least = budgets.LEAST_OUTPUT + max(0, thinking)
    return Wish(request.model, bool(request.stream), output, least, document, len(body))


def _check_gemini(document: dict[str, Any]) -> None:
    """Refuse limits of output in a spelling that is not read here."""
    # The API takes both spellings; only the one it documents is read here.
    names = {"generation_config"} & set(document)
    inner = document.get("generationConfig")
    names |= {"max_output_tokens", "candidate_count"} & set(inner if isinstance(inner, dict) else ())
    if names:
        problem = f"{', '.join(sorted(names))}: write generationConfig, maxOutputTokens and candidateCount"
        raise errors.GATEWAY_REQUEST_INVALID(problem=problem)


#: What is said before a conversation: keys of a request (Anthropic, Responses, Gemini), and roles of a first message.
_SYSTEM: Final = ("system", "instructions", "systemInstruction", "developer")


class _Talk(NamedTuple):
    """Where a request has what was said so far."""

    key: str
    #: What is in it when a tool's result is.
    result: bytes
    #: Something that the user says.
    say: Callable[[str], dict[str, Any]]


_TALKS: Final = {
    usage.Api.ANTHROPIC: _Talk("messages", b'"tool_result"', lambda text: {"role": "user", "content": text}),
    usage.Api.CHAT: _Talk("messages", b'"tool_call_id"', lambda text: {"role": "user", "content": text}),
    usage.Api.RESPONSES: _Talk(
        "input", b'_call_output"',
        lambda text: {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
    ),
    usage.Api.GEMINI: _Talk(
        "contents", b'"functionResponse"', lambda text: {"role": "user", "parts": [{"text": text}]}
    ),
}  # fmt: skip


def goes_on(api: usage.Api, wish: Wish, body: bytes) -> bool:
    """Whether a call goes on with an agent's work: a side call (a title, a summary) has no results of tools."""
    talk = _TALKS[api]
    return isinstance(wish.body.get(talk.key), list) and talk.result in body


def conversation(api: usage.Api, wish: Wish) -> str:
    """A name for the conversation that a call is part of; empty: a side call, which offers no tools.

    Codex names its threads; its sub-agents share the name for the cache, by which other clients of OpenAI's API tell
    conversations apart. Elsewhere a sub-agent is told by its system prompt: messages change when they are compacted.
    """
    talk = wish.body.get(_TALKS[api].key)
    said = [item for item in talk if isinstance(item, dict)] if isinstance(talk, list) else []
    # Codex tells newer models of their tools by an item of the input.
    if not wish.body.get("tools") and not any(item.get("type") == "additional_tools" for item in said):
        return ""
    told = wish.body.get("client_metadata")
    name: Any = (told.get("thread_id") if isinstance(told, dict) else None) or wish.body.get("prompt_cache_key")
    if not name:
        name = [wish.body.get(key) for key in _SYSTEM] + [item for item in said[:1] if item.get("role") in _SYSTEM]
    return hashlib.blake2b(msgspec.json.encode(name), digest_size=8).hexdigest()


def rewrite(api: usage.Api, wish: Wish, body: bytes, *, output: int, asked: int, nudge: str = "") -> bytes:
    """The request as it is sent: byte for byte, but where output is cut down, usage would not be told, or for a nudge.

    Args:
        api: Its language.
        wish: What it asks for.
        body: As it came.
        output: Output it may have.
        asked: Output that was asked for.
        nudge: What the user is to say last; only for one that :func:`goes_on`.

    """
    changes: dict[str, Any] = {}
    if nudge:
        talk = _TALKS[api]
        changes[talk.key] = [*wish.body[talk.key], talk.say(nudge)]
    if api is usage.Api.GEMINI:
        if output < asked:
            config = wish.body.get("generationConfig")
            changes["generationConfig"] = {**(config if isinstance(config, dict) else {}), "maxOutputTokens": output}
    elif output < asked:
        name = {usage.Api.ANTHROPIC: "max_tokens", usage.Api.RESPONSES: "max_output_tokens"}.get(api)
        if name is None:
            old = wish.body.get("max_completion_tokens") is None and wish.body.get("max_tokens") is not None
            name = "max_tokens" if old else "max_completion_tokens"
        changes[name] = output
    if api is usage.Api.CHAT and wish.streamed:
        options = wish.body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        if options.get("include_usage") is not True:
            changes["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode({**wish.body, **changes}) if changes else body


def charge_of(
    end: End, meter: usage.Meter | None, held: budgets.Charge, price: prices.Price | None
) -> budgets.Charge | None:
    """What a call is charged; None: nothing."""
    if end in FREE:
        return None
    if meter is None or (end is End.UNMETERED and not meter.known) or (end is End.INTERRUPTED and not meter.final):
        return held
    used = meter.usage if meter.known else usage.Usage(input=held.used.input)
    estimated = not meter.final
    if estimated:
        # What was generated and not billed to us yet: never more than was reserved, never less than was told.
        told = max(used.output, min(held.used.output, meter.size // 4))
        used = msgspec.structs.replace(used, output=told)
    cost = None if price is None else price.cost(used)
    return budgets.Charge(used=used, cost_nano=cost, tool_calls=meter.tool_calls, estimated=estimated)


def final_status(api: usage.Api) -> int:
    """The status that made every CLI of that API stop at its first request, when measured."""
    return 402 if api is usage.Api.ANTHROPIC else 400


def error_body(api: usage.Api, error: errors.AgentinaError) -> bytes:
    """A refusal in the API's own form, so that its CLI shows the words."""
    text = f"{error.message} {error.remedy} [{error.code}]"
    if api is usage.Api.ANTHROPIC:
        return msgspec.json.encode({"type": "error", "error": {"type": "invalid_request_error", "message": text}})
    if api is usage.Api.GEMINI:
        told = {"code": final_status(api), "message": text, "status": "INVALID_ARGUMENT"}
        return msgspec.json.encode({"error": told})
    detail = {"message": text, "type": "invalid_request_error", "param": None, "code": error.code.lower()}
    return msgspec.json.encode({"error": detail})


def error_event(api: usage.Api, error: errors.AgentinaError) -> bytes:
    """The same within a stream that has begun."""
    if api is usage.Api.RESPONSES:
        detail = {"code": error.code.lower(), "message": f"{error.message} {error.remedy} [{error.code}]"}
        failed = {"type": "response.failed", "response": {"status": "failed", "error": detail}}
        return b"event: response.failed\ndata: %s\n\n" % msgspec.json.encode(failed)
    name = b"event: error\n" if api is usage.Api.ANTHROPIC else b""
    return b"%sdata: %s\n\n" % (name, error_body(api, error))


def ping(api: usage.Api) -> bytes:
    """What keeps a client waiting without saying anything; empty: it can be told nothing."""
    if api is usage.Api.GEMINI:
        return b""  # Google's library reads nothing but data lines
    return b'event: ping\ndata: {"type": "ping"}\n\n' if api is usage.Api.ANTHROPIC else b": ping\n\n"

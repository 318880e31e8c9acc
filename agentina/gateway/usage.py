"""What a model's answer says it used, for four APIs, streamed or whole. Pure; answers are untrusted input.

Anthropic Messages counts cached input apart from input; OpenAI's APIs and Gemini count it in, and it is taken out here,
so that the numbers of :class:`Usage` never overlap. Gemini counts thoughts apart from output; they are billed as such.
Sources: the APIs' references, and recorded streams.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from agentina.gateway import sse
from agentina.protocol import budgets

#: A count no honest answer exceeds; a larger one is malformed.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
#: Largest answer in one piece that is looked at, in bytes; it passes whatever its size.
MAX_DOCUMENT: Final = sse.MAX_EVENT


class Api(enum.Enum):
    """The languages models are spoken to in."""

    ANTHROPIC = "anthropic"
    RESPONSES = "openai-responses"
    CHAT = "openai-chat"
    GEMINI = "gemini"


class Usage(budgets.Tokens, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens that can be added."""

    @property
    def given(self) -> int:
        """What the model was given, cached or not: so much of its context was filled."""
        return self.input + self.cached + self.cache_write + self.cache_write_1h

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input=self.input + other.input,
            cached=self.cached + other.cached,
            cache_write=self.cache_write + other.cache_write,
            cache_write_1h=self.cache_write_1h + other.cache_write_1h,
            output=self.output + other.output,
        )


class _Creation(msgspec.Struct):
    ephemeral_1h_input_tokens: Count | None = None


class _AnthropicUsage(msgspec.Struct):
    input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: _Creation | None = None
    output_tokens: Count | None = None


class _AnthropicMessage(msgspec.Struct):
    usage: _AnthropicUsage | None = None


class _Block(msgspec.Struct):
    type: str = ""


class _AnthropicEvent(msgspec.Struct):
    type: str = ""
    message: _AnthropicMessage | None = None
    usage: _AnthropicUsage | None = None
    content_block: _Block | None = None
    content: list[_Block] = []


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None
    #: Of models since GPT-5.6, which charge for it.
    cache_write_tokens: Count | None = None


class _ResponsesUsage(msgspec.Struct):
    input_tokens: Count = 0
    output_tokens: Count = 0
    input_tokens_details: _Details | None = None


class _Response(msgspec.Struct):
    usage: _ResponsesUsage | None = None
    output: list[_Block] = []


class _ResponsesEvent(msgspec.Struct):
    type: str = ""
    response: _Response | None = None
    item: _Block | None = None
    usage: _ResponsesUsage | None = None
    output: list[_Block] = []


class _ChatUsage(msgspec.Struct):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: _Details | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None


class _ChatMessage(msgspec.Struct):
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _ChatMessage | None = None
    message: _ChatMessage | None = None


class _ChatChunk(msgspec.Struct):
    usage: _ChatUsage | None = None
    choices: list[_Choice] = []


class _GeminiUsage(msgspec.Struct, rename="camel"):
    prompt_token_count: Count = 0
    tool_use_prompt_token_count: Count = 0
    cached_content_token_count: Count = 0
    candidates_token_count: Count = 0
    thoughts_token_count: Count = 0


class _GeminiPart(msgspec.Struct, rename="camel"):
    function_call: dict[str, Any] | None = None


class _GeminiContent(msgspec.Struct):
    parts: list[_GeminiPart] = []


class _GeminiCandidate(msgspec.Struct, rename="camel"):
    content: _GeminiContent | None = None
    finish_reason: str | None = None


class _GeminiFeedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _GeminiAnswer(msgspec.Struct, rename="camel"):
    candidates: list[_GeminiCandidate] = []
    usage_metadata: _GeminiUsage | None = None
    prompt_feedback: _GeminiFeedback | None = None


_MARKERS: Final = {
    Api.ANTHROPIC: (b'"usage"', b'"tool_use"'),
    Api.RESPONSES: (b'"usage"', b'"response.output_item.done"'),
    Api.CHAT: (b'"usage":{', b'"usage": {', b'"tool_calls"'),
    Api.GEMINI: (b'"usageMetadata"', b'"functionCall"', b'"finishReason"'),
}
_RESPONSES_TOOLS: Final = frozenset({"function_call", "custom_tool_call", "local_shell_call", "shell_call", "mcp_call"})
_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Meter:
    """Reads one answer as it passes. ``feed`` and ``close`` never raise."""

    def __init__(self, api: Api, *, streamed: bool) -> None:
        readers: dict[Api, tuple[type[Any], Callable[[Any], None]]] = {
            Api.ANTHROPIC: (_AnthropicEvent, self._on_anthropic),
            Api.RESPONSES: (_ResponsesEvent, self._on_responses),
            Api.CHAT: (_ChatChunk, self._on_chat),
            Api.GEMINI: (_GeminiAnswer, self._on_gemini),
        }
        kind, self._read = readers[api]
        self._decoder = msgspec.json.Decoder(kind)
        self._events = sse.Reader(_MARKERS[api]) if streamed else None
        self._document: bytearray | None = None if streamed else bytearray()
        self._malformed = 0
        #: What is known so far.
        self.usage = Usage()
        #: Whether that is the whole: the provider has said its last word on it.
        self.final = False
        #: Whether anything was said of usage at all.
        self.known = False
        #: Tools the model asked for.
        self.tool_calls = 0
        #: Bytes that passed.
        self.size = 0

    @property
    def malformed(self) -> int:
        """Events that should have been understood and were not."""
        return self._malformed + (self._events.oversized if self._events is not None else 0)

    def feed(self, piece: bytes) -> None:
        """Look at what passes."""
        self.size += len(piece)
        if self._events is not None:
            for data in self._events.feed(piece):
                self._take(data)
        elif self._document is not None:
            self._document += piece
            if len(self._document) > MAX_DOCUMENT:
                self._document = None
                self._malformed += 1

    def close(self) -> None:
        """The answer is complete."""
        if self._events is not None:
            for data in self._events.close():
                self._take(data)
        elif self._document is not None:
            self._take(bytes(self._document))
            self._document = None

    def _take(self, data: bytes) -> None:
        try:
            self._read(self._decoder.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._malformed += 1

    def _on_anthropic(self, event: _AnthropicEvent) -> None:
        if event.type == "content_block_start":
            self.tool_calls += event.content_block is not None and event.content_block.type == "tool_use"
        said = event.message.usage if event.message is not None else event.usage
        if said is None:
            return
        hour = said.cache_creation.ephemeral_1h_input_tokens if said.cache_creation is not None else None
        written = said.cache_creation_input_tokens
        before = self.usage
        if hour is None:
            hour = before.cache_write_1h
        # Later events repeat a number or leave it out; they never mean to take it back.
        self.usage = Usage(
            input=_last(said.input_tokens, before.input),
            cached=_last(said.cache_read_input_tokens, before.cached),
            cache_write=before.cache_write if written is None else max(0, written - hour),
            cache_write_1h=hour,
            output=_last(said.output_tokens, before.output),
        )
        self.known = True
        self.final = self.final or event.type in {"message_delta", "message"}
        if event.type == "message":
            self.tool_calls += sum(block.type == "tool_use" for block in event.content)

    def _on_responses(self, event: _ResponsesEvent) -> None:
        if event.type == "response.output_item.done":
            self.tool_calls += event.item is not None and event.item.type in _RESPONSES_TOOLS
        is_whole = self._events is None
        said = event.usage if is_whole else event.response.usage if event.response is not None else None
        if said is None:
            return
        self.usage = _apart(said.input_tokens, said.input_tokens_details, said.output_tokens)
        self.known = True
        self.final = is_whole or event.type in _TERMINAL
        if is_whole:
            self.tool_calls += sum(item.type in _RESPONSES_TOOLS for item in event.output)

    def _on_chat(self, chunk: _ChatChunk) -> None:
        for choice in chunk.choices:
            message = choice.delta or choice.message
            for call in (message.tool_calls or []) if message is not None else []:
                self.tool_calls += bool(call.id)
        if chunk.usage is None:
            return
        said = chunk.usage
        self.usage = _apart(said.prompt_tokens, said.prompt_tokens_details, said.completion_tokens)
        self.known = True
        self.final = True

    def _on_gemini(self, answer: _GeminiAnswer) -> None:
        for candidate in answer.candidates:
            parts = [] if candidate.content is None else candidate.content.parts
            self.tool_calls += sum(part.function_call is not None for part in parts)
        said = answer.usage_metadata
        if said is not None:
            total = said.prompt_token_count + said.tool_use_prompt_token_count
            cached = min(said.cached_content_token_count, total)
            # Each event repeats the totals so far.
            output = max(self.usage.output, said.candidates_token_count + said.thoughts_token_count)
            self.usage = Usage(input=total - cached, cached=cached, output=output)
            self.known = True
        ended = any(candidate.finish_reason for candidate in answer.candidates)
        blocked = answer.prompt_feedback is not None and bool(answer.prompt_feedback.block_reason)
        self.final = self.final or (self.known and (ended or blocked or self._events is None))


def _last(said: int | None, before: int) -> int:
    return before if said is None else said


def _apart(total: int, details: _Details | None, output: int) -> Usage:
    """What OpenAI's APIs count in, taken out of the input."""
    cached = min(0 if details is None else details.cached_tokens or 0, total)
    written = min(0 if details is None else details.cache_write_tokens or 0, total - cached)
    return Usage(input=total - cached - written, cached=cached, cache_write=written, output=output)

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.gateway import usage


def event(document: Any) -> bytes:
    return f"event: {document.get('type', 'x')}\ndata: {json.dumps(document)}\n\n".encode()


def metered(api: usage.Api, *events: bytes, streamed: bool = True) -> usage.Meter:
    meter = usage.Meter(api, streamed=streamed)
    for one in events:
        meter.feed(one)
    meter.close()
    return meter


ANTHROPIC = (
    event({"type": "message_start", "message": {"id": "m", "usage": {
        "input_tokens": 10, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 20, "output_tokens": 1,
        "cache_creation": {"ephemeral_5m_input_tokens": 25, "ephemeral_1h_input_tokens": 5}}}}),
    event({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "input": {}}}),
    event({"type": "content_block_delta",
           "delta": {"type": "input_json_delta", "partial_json": '{"usage": {"input_tokens": 9}}'}}),
    event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 42}}),
    event({"type": "message_stop"}),
)  # fmt: skip
RESPONSES = (
    event({"type": "response.created", "response": {"usage": None}}),
    event({"type": "response.output_item.done", "item": {"type": "function_call", "name": "x"}}),
    event({"type": "response.output_item.done", "item": {"type": "message"}}),
    event({"type": "response.completed", "response": {"output": [{"type": "function_call"}], "usage": {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 15},
        "output_tokens": 7}}}),
)  # fmt: skip
CHAT = (
    event({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {}}]}}], "usage": None}),
    event({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}], "usage": None}),
    event({"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 8,
                                    "prompt_tokens_details": {"cached_tokens": 20}}}),
    b"data: [DONE]\n\n",
)  # fmt: skip


@pytest.mark.parametrize(
    ("api", "events", "expected"),
    [
        (usage.Api.ANTHROPIC, ANTHROPIC, usage.Usage(input=10, cached=20, cache_write=25, cache_write_1h=5, output=42)),
        (usage.Api.RESPONSES, RESPONSES, usage.Usage(input=25, cached=60, cache_write=15, output=7)),
        (usage.Api.CHAT, CHAT, usage.Usage(input=30, cached=20, output=8)),
    ],
)
def test_a_stream_is_read_to_the_token(api: usage.Api, events: tuple[bytes, ...], expected: usage.Usage) -> None:
    meter = metered(api, *events)
    assert (meter.usage, meter.final, meter.tool_calls, meter.malformed) == (expected, True, 1, 0)


def test_an_answer_in_one_piece_is_read() -> None:
    whole = {
        "type": "message",
        "content": [{"type": "tool_use"}, {"type": "text"}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    meter = metered(usage.Api.ANTHROPIC, json.dumps(whole).encode(), streamed=False)
    assert (meter.usage, meter.final, meter.tool_calls) == (usage.Usage(input=3, output=4), True, 1)
    response = {"output": [{"type": "function_call"}], "usage": {"input_tokens": 3, "output_tokens": 4}}
    meter = metered(usage.Api.RESPONSES, json.dumps(response).encode(), streamed=False)
    assert (meter.usage, meter.final, meter.tool_calls) == (usage.Usage(input=3, output=4), True, 1)
    chat = {
        "choices": [{"message": {"tool_calls": [{"id": "x"}]}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    meter = metered(usage.Api.CHAT, json.dumps(chat).encode(), streamed=False)
    assert (meter.usage, meter.final, meter.tool_calls) == (usage.Usage(input=3, output=4), True, 1)


@pytest.mark.parametrize(
    ("api", "events"), [(usage.Api.ANTHROPIC, ANTHROPIC), (usage.Api.RESPONSES, RESPONSES), (usage.Api.CHAT, CHAT)]
)
def test_a_stream_that_breaks_off_is_not_final(api: usage.Api, events: tuple[bytes, ...]) -> None:
    assert not metered(api, *events[:2]).final


@pytest.mark.parametrize(
    "data",
    [b'data: {"usage": {"input_tokens": -1, "output_tokens": 1}}\n\n', b'data: {"usage"\n\n', b'data: "usage"\n\n',
     b'data: {"usage": {"input_tokens": "1"}}\n\n', b'data: {"usage": {"input_tokens": 99999999999999}}\n\n',
     b'data: \xff"usage"\n\n'],
)  # fmt: skip
def test_malformed_events_are_counted_and_change_nothing(data: bytes) -> None:
    meter = metered(usage.Api.ANTHROPIC, ANTHROPIC[0], data, *ANTHROPIC[1:])
    assert meter.malformed == 1
    assert meter.usage.output == 42


@given(
    st.sampled_from(usage.Api),
    st.lists(st.binary(max_size=60) | st.sampled_from(ANTHROPIC + RESPONSES + CHAT)),
    st.sampled_from(["streamed", "whole"]),
)
def test_anything_can_be_fed(api: usage.Api, pieces: list[bytes], form: str) -> None:
    meter = metered(api, *pieces, streamed=form == "streamed")
    assert meter.size == sum(map(len, pieces))
    assert meter.usage.counted >= 0


def test_a_document_too_large_to_be_looked_at_still_counts_its_size() -> None:
    meter = usage.Meter(usage.Api.CHAT, streamed=False)
    for _ in range(6):
        meter.feed(b"x" * (1 << 20))
    meter.close()
    assert (meter.size, meter.known, meter.malformed) == (6 << 20, False, 1)

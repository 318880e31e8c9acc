from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.gateway import budgets, calls, prices, usage

HELD = budgets.Charge(used=usage.Usage(input=500, output=1000), cost_nano=99, tool_calls=1, estimated=True)
PRICE = prices.Price(input=1, output=2)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/anthropic/v1/messages?beta=true", "/v1/messages"),
        ("/openai/v1/responses", "/v1/responses"),
        ("/openai/v1/models/gpt-5", "/v1/models/gpt-5"),
        ("/anthropic/v1/models", "/v1/models"),
        ("/anthropic/v1/messages/", None),
        ("/anthropic/v1/../v1/messages", None),
        ("/anthropic/v1/%6dessages", None),
        ("/openai/v1/models/../files", None),
        ("/openai/v1/files", None),
        ("/gemini/v1beta/models/gemini-2.5-flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("/gemini/v1beta/models/m:streamGenerateContent?alt=sse", "/v1beta/models/m:streamGenerateContent"),
        ("/gemini/v1beta/models/m:streamGenerateContent", None),
        ("/gemini/v1beta/models/m:streamGenerateContent?x=alt=sse", None),
        ("/gemini/v1beta/models/m:countTokens", "/v1beta/models/m:countTokens"),
        ("/gemini/v1beta/models/m:embedContent", None),
        ("/gemini/v1beta/models/../x:generateContent", None),
        ("/gemini/v1beta/models:generateContent", None),
        ("/gemini/v1beta/models", "/v1beta/models"),
        ("/gemini/v1beta/files", None),
        ("/", None),
    ],
)
def test_only_known_paths_lead_to_a_provider(path: str, expected: str | None) -> None:
    found = calls.route(path)
    assert (found[0].path if found else None) == expected


def test_a_thinking_budget_has_to_fit() -> None:
    body = json.dumps(
        {"model": "m", "max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 4000}}
    ).encode()
    wish = calls.understand(usage.Api.ANTHROPIC, body)
    assert (wish.output, wish.least) == (9000, 4000 + budgets.LEAST_OUTPUT)


def of_values(value: bytes, count: int) -> bytes:
    return b'{"model":"m","max_tokens":5,"messages":[%s0]}' % (value * count)


@pytest.mark.parametrize("value", [b"[],", b'"ab",', b"{},"])
def test_values_that_would_take_many_times_their_size_are_too_many(value: bytes) -> None:
    with pytest.raises(errors.AgentinaError, match="more than 2000000 values") as caught:
        calls.understand(usage.Api.ANTHROPIC, of_values(value, calls.MAX_VALUES + 1))
    assert caught.value.code == "GATEWAY_REQUEST_INVALID"


def test_as_much_text_is_taken_as_any_context_holds() -> None:
    assert calls.understand(usage.Api.ANTHROPIC, of_values(b'"[, {,",', 300_000)).model == "m"


def test_a_call_without_a_maximum_reserves_the_models() -> None:
    wish = calls.understand(usage.Api.RESPONSES, b'{"model": "m"}')
    assert wish.priced(None).output == budgets.DEFAULT_OUTPUT
    assert wish.priced(prices.Price(input=1, output=1, max_output=7)).output == 7


@pytest.mark.parametrize(
    ("said", "is_standard"),
    [
        ({}, True),
        ({"service_tier": "auto"}, True),
        ({"service_tier": "flex"}, True),
        ({"service_tier": None, "speed": "standard"}, True),
        ({"service_tier": "priority"}, False),
        ({"serviceTier": "priority"}, False),
        ({"speed": "fast"}, False),
        ({"service_tier": ["default"]}, False),
    ],
)
def test_to_be_served_before_others_has_no_price_in_the_table(said: dict[str, object], *, is_standard: bool) -> None:
    body = json.dumps({"model": "m", **said}).encode()
    assert calls.understand(usage.Api.RESPONSES, body).is_standard is is_standard


@pytest.mark.parametrize(
    ("api", "given_as", "changed"),
    [
        (usage.Api.ANTHROPIC, "max_tokens", "max_tokens"),
        (usage.Api.RESPONSES, "max_output_tokens", "max_output_tokens"),
        (usage.Api.CHAT, "max_completion_tokens", "max_completion_tokens"),
        (usage.Api.CHAT, "max_tokens", "max_tokens"),
    ],
)
def test_output_is_cut_down_under_the_name_it_came_with(api: usage.Api, given_as: str, changed: str) -> None:
    body = json.dumps({"model": "m", given_as: 5000}).encode()
    wish = calls.understand(api, body)
    assert json.loads(calls.rewrite(api, wish, body, output=300, asked=5000)) == {"model": "m", changed: 300}
    assert calls.rewrite(api, wish, body, output=5000, asked=5000) is body


def test_several_answers_to_one_request_are_refused() -> None:
    # Each of them may be as long as the output that is reserved for all.
    with pytest.raises(errors.AgentinaError, match="several answers"):
        calls.understand(usage.Api.CHAT, b'{"model": "m", "max_completion_tokens": 1000, "n": 2}')
    for single in (b'{"model": "m", "n": 1}', b'{"model": "m", "n": null}'):
        assert calls.understand(usage.Api.CHAT, single).model == "m"


USER = {"role": "user", "content": "go"}
TALKS = [
    (usage.Api.ANTHROPIC, "messages", [USER, {"role": "user", "content": [{"type": "tool_result"}]}]),
    (usage.Api.CHAT, "messages", [USER, {"role": "tool", "tool_call_id": "c", "content": "x"}]),
    (usage.Api.RESPONSES, "input", [USER, {"type": "custom_tool_call_output", "output": "x"}]),
    (usage.Api.GEMINI, "contents", [USER, {"role": "user", "parts": [{"functionResponse": {}}]}]),
]


@pytest.mark.parametrize(("api", "key", "talk"), TALKS)
def test_nudge_is_said_last_by_the_user(api: usage.Api, key: str, talk: list[dict[str, object]]) -> None:
    body = json.dumps({"model": "m", "x": 1, key: talk}).encode()
    wish = calls.understand(api, body)
    assert calls.goes_on(api, wish, body)
    sent = json.loads(calls.rewrite(api, wish, body, output=9, asked=9, nudge="stop that"))
    assert (sent["x"], sent[key][:-1]) == (1, talk)
    assert sent[key][-1]["role"] == "user"
    assert "stop that" in json.dumps(sent[key][-1])


@pytest.mark.parametrize(("api", "key", "talk"), TALKS)
def test_call_that_goes_on_with_no_work_is_not_nudged(api: usage.Api, key: str, talk: list[dict[str, object]]) -> None:
    for said in ({key: talk[:1]}, {key: json.dumps(talk)}, {}):
        body = json.dumps({"model": "m", **said}).encode()
        assert not calls.goes_on(api, calls.understand(api, body), body)


#: What two conversations differ by, as the command lines have it: the task's own, and a sub-agent's.
CONVERSATIONS: list[tuple[usage.Api, dict[str, Any], dict[str, Any]]] = [
    # Codex 0.163, and a sub-agent that it spawned.
    (
        usage.Api.RESPONSES,
        {"prompt_cache_key": "a", "client_metadata": {"session_id": "a", "thread_id": "a", "turn_id": "c"}},
        {"prompt_cache_key": "a", "client_metadata": {"session_id": "a", "thread_id": "b", "turn_id": "d"}},
    ),
    (usage.Api.RESPONSES, {"prompt_cache_key": "a"}, {"prompt_cache_key": "b", "client_metadata": "a"}),
    (usage.Api.RESPONSES, {"instructions": "You are Codex."}, {"instructions": "You look for bugs."}),
    (usage.Api.CHAT, {"messages": [{"role": "system", "content": "a"}]}, {"messages": [{"role": "system"}]}),
    (usage.Api.CHAT, {"messages": [{"role": "developer", "content": "a"}]}, {"messages": [USER]}),
    (usage.Api.GEMINI, {"systemInstruction": {"parts": [{"text": "a"}]}}, {"systemInstruction": {"parts": []}}),
    (usage.Api.ANTHROPIC, {"system": [{"type": "text", "text": "a"}]}, {"system": "b"}),
]
TOOLS: dict[str, Any] = {"tools": [{"name": "shell"}]}


def conversation(api: usage.Api, *parts: dict[str, Any]) -> str:
    body: dict[str, Any] = {"model": "m"}
    for part in parts:
        body |= part
    return calls.conversation(api, calls.understand(api, json.dumps(body).encode()))


@pytest.mark.parametrize(("api", "own", "other"), CONVERSATIONS)
def test_conversation_is_told_from_that_of_a_sub_agent(
    api: usage.Api, own: dict[str, Any], other: dict[str, object]
) -> None:
    name = conversation(api, TOOLS, own)
    assert name
    assert conversation(api, TOOLS, other) not in {name, ""}
    # It stays the same while it goes on, on another model too, and when it was compacted.
    key = "contents" if api is usage.Api.GEMINI else "input" if api is usage.Api.RESPONSES else "messages"
    first = own.get(key, [])
    assert isinstance(first, list)
    for talk in ([*first, USER], [*first, {"role": "user", "content": "A summary."}]):
        assert conversation(api, TOOLS, own, {key: talk, "model": "n"}) == name


@pytest.mark.parametrize(("api", "own", "other"), CONVERSATIONS)
def test_side_call_without_tools_is_no_conversation(
    api: usage.Api, own: dict[str, Any], other: dict[str, object]
) -> None:
    for part in (own, other, {**own, "tools": []}, {"input": ["x"], "messages": "x"}):
        assert not conversation(api, part)


def test_tools_that_are_told_within_the_input_make_a_conversation() -> None:
    told = {"input": [USER, {"type": "additional_tools", "tools": []}]}
    assert conversation(usage.Api.RESPONSES, told)


def meter_of(known: bytes, size: int) -> usage.Meter:
    meter = usage.Meter(usage.Api.ANTHROPIC, streamed=True)
    meter.feed(known)
    meter.feed(b"x" * size)
    return meter


START = b'data: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'


@pytest.mark.parametrize("end", [end for end in calls.End if end in calls.FREE])
def test_a_refusal_of_the_provider_costs_nothing(end: calls.End) -> None:
    assert calls.charge_of(end, None, HELD, PRICE) is None


def test_what_was_not_told_is_charged_as_reserved() -> None:
    assert calls.charge_of(calls.End.UNREACHABLE, None, HELD, PRICE) == HELD
    assert calls.charge_of(calls.End.UNMETERED, meter_of(b"", 50), HELD, PRICE) == HELD


LAST = b'data: {"type":"message_delta","usage":{"output_tokens":9}}\n\n'


@pytest.mark.parametrize(
    ("known", "used"), [(b"", HELD.used), (START, HELD.used), (START + LAST, usage.Usage(input=3, output=9))]
)
def test_a_call_that_broke_off_with_the_gateway_is_charged_in_full_or_exactly(known: bytes, used: usage.Usage) -> None:
    charge = calls.charge_of(calls.End.INTERRUPTED, meter_of(known, 50), HELD, PRICE)
    assert charge is not None
    assert (charge.used, charge.estimated) == (used, used is HELD.used)


@given(st.integers(0, 100_000), st.sampled_from([START, b""]))
def test_an_answer_that_broke_off_is_charged_by_an_upper_estimate(size: int, known: bytes) -> None:
    meter = meter_of(known, size)
    charge = calls.charge_of(calls.End.CUT, meter, HELD, PRICE)
    assert charge is not None
    assert charge.estimated
    assert charge.used.input == (3 if known else 500)
    assert meter.usage.output <= charge.used.output <= 1000
    assert charge.cost_nano == PRICE.cost(charge.used)


@pytest.mark.parametrize("api", usage.Api)
def test_a_refusal_speaks_the_apis_language(api: usage.Api) -> None:
    error = errors.BUDGET_EXHAUSTED(problem="5 of 5 tokens are used")
    assert "5 of 5 tokens" in json.loads(calls.error_body(api, error))["error"]["message"]
    assert calls.error_event(api, error).endswith(b"\n\n")
    assert calls.ping(api).endswith(b"\n\n") or api is usage.Api.GEMINI
    assert calls.final_status(api) not in {401, 429}


GEMINI = "/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


def test_gemini_names_the_model_in_the_path_and_the_output_in_a_part() -> None:
    found = calls.route(GEMINI)
    assert found is not None
    document = {"contents": [], "generationConfig": {"temperature": 0, "maxOutputTokens": 5000}}
    body = json.dumps(document).encode()
    wish = calls.understand(usage.Api.GEMINI, body, found[0])
    assert (wish.model, wish.streamed, wish.output) == ("gemini-2.5-flash", True, 5000)
    assert calls.rewrite(usage.Api.GEMINI, wish, body, output=5000, asked=5000) == body
    changed = json.loads(calls.rewrite(usage.Api.GEMINI, wish, body, output=700, asked=5000))
    assert changed == {"contents": [], "generationConfig": {"temperature": 0, "maxOutputTokens": 700}}


def test_a_thinking_budget_of_gemini_has_to_fit() -> None:
    body = json.dumps({"generationConfig": {"thinkingConfig": {"thinkingBudget": 4000}}}).encode()
    wish = calls.understand(usage.Api.GEMINI, body, calls.Route(usage.Api.GEMINI, "", model="m"))
    assert wish.least == 4000 + budgets.LEAST_OUTPUT


@pytest.mark.parametrize(
    "document",
    [
        {"generationConfig": {"candidateCount": 2}},
        {"generation_config": {"max_output_tokens": 10}},
        {"generationConfig": {"max_output_tokens": 10}},
        {"generationConfig": {"candidate_count": 8}},
        {"generationConfig": {"maxOutputTokens": 0}},
    ],
)
def test_what_gemini_would_generate_beyond_the_reservation_is_refused(document: dict[str, object]) -> None:
    route = calls.Route(usage.Api.GEMINI, "", model="m")
    with pytest.raises(errors.AgentinaError) as caught:
        calls.understand(usage.Api.GEMINI, json.dumps(document).encode(), route)
    assert caught.value.code == "GATEWAY_REQUEST_INVALID"


def test_gemini_is_told_nothing_while_it_waits_and_refused_in_its_own_form() -> None:
    assert calls.ping(usage.Api.GEMINI) == b""
    told = json.loads(calls.error_body(usage.Api.GEMINI, errors.BUDGET_EXHAUSTED(problem="it is used up")))
    assert (told["error"]["code"], told["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert "BUDGET_EXHAUSTED" in told["error"]["message"]

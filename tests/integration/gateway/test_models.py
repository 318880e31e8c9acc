from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agentina.gateway import account, budgets, channel, record, streams, usage
from agentina.protocol import budgets as protocol
from agentina.protocol import jobs
from agentina.system import tasks
from tests.fakes import deadlines
from tests.integration.gateway import gates

PATHS = {
    "/anthropic/v1/messages": {"model": "claude-haiku-4-5", "max_tokens": 100},
    "/openai/v1/responses": {"model": "gpt-test", "max_output_tokens": 100},
    "/openai/v1/chat/completions": {"model": "gpt-test", "max_completion_tokens": 100},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streamed", [True, False])
async def test_usage_equals_what_was_billed_to_the_token(tmp_path: Path, path: str, *, streamed: bool) -> None:
    async with gates.opened(tmp_path) as gate:
        for size in (10, 4000):
            status, headers, body = await gate.ask(path, {**PATHS[path], "stream": streamed, "input": "x" * size})
            assert (status, headers["request-id"]) == (200, "req_1")
            assert body
        fresh, cached, output = gate.provider.billed
        assert gate.totals.used == usage.Usage(input=fresh, cached=cached, output=output)
        assert (gate.totals.tool_calls, gate.totals.calls, gate.totals.estimated) == (2, 2, 0)
        assert gate.ends() == ["completed", "completed"]
        assert gate.totals.cost_nano > 0
        story = record.read(gate.directory)
        assert story is not None
        assert story.totals == gate.totals


async def test_the_real_key_is_added_here_and_the_token_stays(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        await gate.message()
        await gate.ask("/openai/v1/responses", {"model": "gpt-test", "stream": True})
        anthropic, openai = gate.provider.asked
        assert anthropic.headers["x-api-key"] == gates.KEY
        assert openai.headers["authorization"] == f"Bearer {gates.KEY}"
        assert anthropic.path == "/v1/messages?beta=true"
        for asked in (anthropic, openai):
            assert gate.token not in str(asked.headers)
            assert asked.headers["accept-encoding"] == "identity"
        everything = b"".join(path.read_bytes() for path in gate.directory.iterdir() if path.is_file())
        assert gates.KEY.encode() not in everything


async def test_a_request_goes_on_byte_for_byte(tmp_path: Path) -> None:
    odd = b'{ "model":"claude-haiku-4-5",  "max_tokens" :7, "stream":true, "x":1.0e3 }'
    async with gates.opened(tmp_path) as gate:
        await gate.ask("/anthropic/v1/messages", body=odd)
        assert gate.provider.asked[0].body == odd


async def test_nudge_goes_with_one_call_that_is_answered(tmp_path: Path) -> None:
    """Not with a side call, and again where the provider fails."""
    work = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]
    async with gates.opened(tmp_path) as gate:
        gate.account.nudge = "do something else"
        await gate.message()
        gate.provider.scenario = "500"
        await gate.message(messages=work)
        assert gate.account.nudge
        gate.provider.scenario = "text"
        for _ in range(2):
            await gate.message(messages=work)
        told = [b"do something else" in asked.body for asked in gate.provider.asked]
        assert told == [False, True, True, False]
        words = [word for word in gate.told.words if isinstance(word, channel.Nudged)]
        assert [word.text for word in words] == ["do something else"]
        fresh, cached, output = gate.provider.billed
        assert gate.totals.used.counted + gate.totals.used.cached == fresh + cached + output


def talk(thread: str, size: int, **more: Any) -> dict[str, Any]:
    """A request of a conversation, as Codex makes it."""
    told = {"model": "gpt-test", "stream": True, "prompt_cache_key": "session", "tools": [{"name": "shell"}]}
    told["client_metadata"] = {"session_id": "session", "thread_id": thread}
    return {**told, "input": [{"role": "user", "content": "x" * size}], **more}


async def test_context_is_that_of_the_tasks_own_conversation(tmp_path: Path) -> None:
    """Neither side calls, sub-agents, calls that fail nor counting make the figure jump; a restart neither."""
    billed: list[int] = []
    shown: list[int] = []

    async def ask(gate: gates.Gate, document: dict[str, Any]) -> None:
        before = list(gate.provider.billed)
        await gate.ask("/openai/v1/responses", document)
        fresh, cached = (now - then for now, then in zip(gate.provider.billed[:2], before[:2], strict=True))
        billed.append(fresh + cached)
        story = record.read(gate.directory)
        assert story is not None
        shown.append(0 if story.context is None else story.context.tokens)
        assert story.context is None or story.context.window == gates.WINDOW

    async with gates.opened(tmp_path) as gate:
        await ask(gate, talk("title", 9000, tools=[]))
        await ask(gate, talk("main", 2000))
        await ask(gate, talk("sub-agent", 9000))
        gate.provider.scenario = "500"
        await ask(gate, talk("main", 9000))
        gate.provider.scenario = "text"
        await ask(gate, talk("main", 4000))
        await gate.ask("/anthropic/v1/messages/count_tokens", gates.message())
    async with gates.opened(tmp_path) as gate:
        await ask(gate, talk("sub-agent", 9000))
        await ask(gate, talk("main", 3000))  # compacted
    told = [word.context.tokens for word in gate.told.words if isinstance(word, channel.Used) and word.context]
    own = [billed[1], billed[4], billed[6]]
    assert own[0] < own[2] < own[1]
    assert shown == [0, own[0], own[0], own[0], own[1], own[1], own[2]]
    assert told[-1] == own[2]


async def test_what_is_carried_is_told_while_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an answer: a sign of life."""
    monkeypatch.setattr(account, "_ALIVE_SECONDS", 0.01)
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "held"
        asking = tasks.start(gate.message(), name="call")
        async with asyncio.timeout(deadlines.HANG):
            await gate.told.carried.wait()
        assert not asking.done()
        gate.provider.go_on.set()
        await asking
        totals = [word.total for word in gate.told.words if isinstance(word, channel.Carried)]
        assert totals == sorted(set(totals))


async def test_chat_is_asked_to_tell_its_usage(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        wish = {"model": "gpt-test", "stream": True, "stream_options": {"x": 1}}
        await gate.ask("/openai/v1/chat/completions", wish)
        assert gate.provider.asked[0].document["stream_options"] == {"x": 1, "include_usage": True}
        assert gate.totals.used.output == 42


async def test_counting_tokens_and_listing_models_are_free(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=0)) as gate:
        counted = await gate.ask("/anthropic/v1/messages/count_tokens", gates.message())
        listed = await gate.ask("/openai/v1/models", method="GET")
        assert (counted[0], json.loads(counted[2]), listed[0]) == (200, {"input_tokens": 9}, 200)
        assert gate.totals == budgets.Totals()


@pytest.mark.parametrize(
    ("scenario", "status", "end", "retry"),
    [
        ("400", 400, "rejected", None),
        ("401", 402, "key-refused", None),
        ("403", 402, "key-refused", None),
        ("429", 429, "limited", None),
        ("429-after", 429, "limited", "7"),
        ("500", 500, "failed", None),
        ("529", 529, "limited", None),
    ],
)
async def test_errors_of_the_provider_end_a_call_and_cost_nothing(
    tmp_path: Path, scenario: str, status: int, end: str, *, retry: str | None
) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=5000)) as gate:
        gate.provider.scenario = scenario
        answered, headers, body = await gate.message()
        assert (answered, headers.get("retry-after")) == (status, retry)
        assert gate.ends() == [end]
        assert gate.totals == budgets.Totals()
        assert gate.account.ledger.left(0)["tokens"] == 5000
        if end == "key-refused":
            assert b"refuses the key this host has" in body
            assert b"no: 40" not in body


async def test_a_limited_provider_is_left_alone_and_then_asked_again(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "429-after"
        await gate.message()
        for _ in range(20):
            status, headers, _ = await gate.message()
            assert status == 429
            assert 1 <= int(headers["retry-after"]) <= 7
        assert len(gate.provider.asked) == 1
        gate.clock.ahead += 8
        gate.provider.scenario = "text"
        assert (await gate.message())[0] == 200


async def test_the_next_key_is_used_while_one_is_limited(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, keys=2) as gate:
        gate.provider.scenario = "429-after"
        await gate.message()
        gate.provider.scenario = "text"
        assert (await gate.message())[0] == 200
        assert [asked.headers["x-api-key"] for asked in gate.provider.asked] == [gates.KEY, f"{gates.KEY}1"]


async def test_a_refused_key_is_not_tried_again_at_once(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "401"
        assert [(await gate.message())[0] for _ in range(5)] == [402] * 5
        assert len(gate.provider.asked) == 1
        assert gate.refusals() == [("PROVIDER_FAILED", "key", "")]


async def test_a_stream_that_breaks_off_breaks_off_for_the_task(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "cut"
        with pytest.raises(streams.Gone):
            await gate.message()
        assert gate.ends() == ["cut"]
        assert gate.totals.estimated == 1
        told = len(gate.provider.asked[0].body) // 4
        assert gate.totals.used.input + gate.totals.used.cached == told
        assert 0 < gate.totals.used.output < 1000


async def test_a_stream_that_stalls_is_ended(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, stall_seconds=1.5) as gate:
        gate.provider.scenario = "held"
        with pytest.raises(streams.Gone):
            await gate.message()
        assert gate.ends() == ["stalled"]


async def test_a_provider_that_says_nothing_is_unreachable(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, stall_seconds=0.2) as gate:
        for scenario in ("silent", "close"):
            gate.provider.scenario = scenario
            status, _, body = await gate.message()
            assert (status, b"gave no answer" in body) == (502, True)
        assert gate.ends() == ["unreachable", "unreachable"]
        assert gate.totals.estimated == 2


async def test_a_provider_that_is_away_costs_nothing(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=5000), url="http://127.0.0.1:1") as gate:
        status, _, body = await gate.message()
        assert (status, b"cannot be reached" in body) == (502, True)
        assert gate.ends() == ["unreachable"]
        assert gate.account.ledger.left(0)["tokens"] == 5000


async def test_malformed_events_pass_and_usage_is_still_read(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "malformed"
        status, _, body = await gate.message()
        assert status == 200
        assert b"nonsense" in body
        assert gate.ends() == ["completed"]
        assert gate.totals.used.output == 42


async def test_a_task_that_goes_away_ends_the_call(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "held"
        asking = asyncio.get_running_loop().create_task(gate.message())
        await asyncio.wait_for(gate.provider.holding.wait(), deadlines.HANG)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while not gate.ends():
            await asyncio.wait_for(gate.account.changed.wait(), deadlines.HANG)
        assert gate.ends() == ["abandoned"]
        assert gate.totals.estimated == 1


async def test_bytes_are_not_held_back(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "held"
        server = await gate.open()
        body = json.dumps(gates.message()).encode()
        headers = [(b"host", b"x"), (b"x-api-key", gate.token.encode()), (b"content-length", b"%d" % len(body))]
        await server.send_head("POST", "/anthropic/v1/messages", headers)
        await server.send(body)
        await server.finish()
        await server.head(seconds=deadlines.HANG)
        pieces = server.pieces(seconds=deadlines.HANG)
        seen = b""
        while b"content_block_start" not in seen:
            seen += await anext(pieces)
        assert not gate.ends(), "the answer is still under way"
        gate.provider.go_on.set()
        assert b"message_stop" in b"".join([piece async for piece in pieces])
        server.close()


async def test_a_slow_reader_slows_the_provider_down_and_memory_stays_flat(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario, gate.provider.large = "large", 48 << 20
        server = await gate.open()
        body = json.dumps(gates.message()).encode()
        headers = [(b"host", b"x"), (b"x-api-key", gate.token.encode()), (b"content-length", b"%d" % len(body))]
        await server.send_head("POST", "/anthropic/v1/messages", headers)
        await server.send(body)
        await server.finish()
        await server.head(seconds=deadlines.HANG)
        written = -1
        while written <= 0 or written != gate.provider.written:  # until nothing moves any more
            written = gate.provider.written
            await asyncio.sleep(0.5)
        assert 0 < written < 20 << 20
        tracemalloc.start()
        size = 0
        async for piece in server.pieces(seconds=deadlines.HANG):
            size += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        server.close()
        assert size > 48 << 20
        assert peak < 16 << 20
        assert gate.ends() == ["completed"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/anthropic/v1/messages", 402), ("/openai/v1/responses", 400), ("/openai/v1/chat/completions", 400)],
)
async def test_a_used_up_budget_ends_each_cli(tmp_path: Path, path: str, status: int) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=50)) as gate:
        answered, _, body = await gate.ask(path, {**PATHS[path], "stream": True, "input": "x" * 1000})
        assert answered == status
        assert "budget is used up" in json.loads(body)["error"]["message"]
        assert not gate.provider.asked
        assert gate.refusals() == [("BUDGET_EXHAUSTED", "tokens", "")]


async def test_fifty_callers_do_not_overrun(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=6000)) as gate:
        gate.provider.output = 300
        answers = await asyncio.gather(*(gate.message(max_tokens=300) for _ in range(50)))
        good = [status for status, _, _ in answers if status == 200]
        assert {status for status, _, _ in answers} == {200, 402}
        assert gate.totals.used.counted <= 6000
        assert gate.totals.calls == len(good) == len(gate.provider.asked)
        fresh, cached, output = gate.provider.billed
        assert gate.totals.used == usage.Usage(input=fresh, cached=cached, output=output)


async def test_the_maximum_of_output_is_cut_down_to_what_is_left(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=2000)) as gate:
        await gate.message(max_tokens=50_000)
        sent = gate.provider.asked[0]
        assert sent.document["max_tokens"] < 2000 - len(sent.body) // 4
        assert sent.document["messages"] == gates.message()["messages"]


async def test_a_warning_is_given_at_four_fifths(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tool_calls=5)) as gate:
        for _ in range(4):
            await gate.message()
        assert [word.text for word in gate.told.words if isinstance(word, channel.Warned)] == [
            "4 of 5 tool calls are used"
        ]


async def test_an_unpriced_model_is_an_error_where_the_budget_is_in_money(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(cost=5)) as gate:
        status, _, body = await gate.message(model="claude-of-tomorrow")
        assert (status, b"price is not known" in body) == (402, True)
        assert gate.refusals() == [("MODEL_REFUSED", "unpriced", "claude-of-tomorrow")]
        status, _, body = await gate.message(speed="fast")
        assert (status, b"price of being served before others is not known" in body) == (402, True)
        assert not gate.provider.asked
    async with gates.opened(tmp_path) as gate:
        assert (await gate.message(model="claude-of-tomorrow"))[0] == 200
        assert (gate.totals.unpriced, gate.totals.cost_nano) == (1, 0)


async def test_cost_is_what_the_table_says(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(cost=1)) as gate:
        await gate.message()
        fresh, cached, output = gate.provider.billed
        expected = (fresh * 1 + cached * 0.1 + output * 5) / 1e6
        assert gate.totals.cost_nano == round(expected * protocol.DOLLAR)


async def test_a_parked_call_goes_on_when_the_budget_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentina.gateway.models.PING_SECONDS", 0.05)
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=50, on_exhausted="park")) as gate:
        wished: list[bool] = []
        gate.account._days.on_unmet = lambda: wished.append(gate.account.is_parked)
        asking = asyncio.get_running_loop().create_task(gate.message())
        await gate.wait_until_refused()
        await asyncio.sleep(1)  # some pings
        assert not asking.done()
        # The control plane is asked as soon as a call is held, and not again at each ping.
        assert wished == [True]
        gate.account.raise_to(jobs.Budget(tokens=50_000))
        status, _, body = await asking
        assert status == 200
        assert body.count(b"event: ping") >= 2
        assert body.endswith(b'{"type": "message_stop"}\n\n')


async def test_a_parked_call_meets_an_error_within_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentina.gateway.models.PING_SECONDS", 0.05)
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=50, on_exhausted="park")) as gate:
        gate.provider.scenario = "500"
        asking = asyncio.get_running_loop().create_task(gate.message())
        await gate.wait_until_refused()
        await asyncio.sleep(1)  # some pings
        gate.account.raise_to(jobs.Budget(tokens=50_000))
        status, _, body = await asking
        assert status == 200
        assert b"event: error" in body


async def test_what_is_left_can_be_asked(tmp_path: Path) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=5000, cost=1)) as gate:
        status, _, body = await gate.ask("/agentina/budget", method="GET")
        left: dict[str, Any] = json.loads(body)["left"]
        assert (status, left["tokens"], left["cost"], left["duration"]) == (200, 5000, 1, None)


async def test_calls_under_way_at_a_kill_are_charged_in_full(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        await gate.message()
        exact = gate.totals
    reserved = budgets.Charge(used=usage.Usage(input=100, output=900), cost_nano=7, tool_calls=1, estimated=True)
    with (tmp_path / "task" / record.NAME).open("ab") as file:
        file.write(record.encode(record.Asked(number=9, model="m", reserved=reserved)))
        file.write(b"deadbeef {torn")
    async with gates.opened(tmp_path) as gate:
        assert gate.totals == exact.plus(reserved)
        assert gate.ends() == ["completed", "interrupted"]
        await gate.message()
        assert gate.totals.calls == 3


async def test_nothing_is_sent_that_cannot_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(tokens=5000)) as gate:
        full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115, ASYNC230 - stands in for the record's file
        monkeypatch.setattr(gate.account._record, "_descriptor", full.fileno())
        monkeypatch.setattr("os.ftruncate", lambda *_: None)
        status, _, body = await gate.message()
        assert (status, b"DISK_FULL" in body) == (402, True)
        assert not gate.provider.asked
        assert gate.account.ledger.left(0)["tokens"] == 5000
        monkeypatch.undo()
        full.close()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"model": 7}', b'{"model": ""}', b"\xff", b'{"model":"x","max_output_tokens":0}',
        b'{"model":"x","background":true}', b"[" * 5000,
    ],
)  # fmt: skip
async def test_what_is_no_request_for_a_model_is_refused(tmp_path: Path, body: bytes) -> None:
    async with gates.opened(tmp_path) as gate:
        status, _, answer = await gate.ask("/openai/v1/responses", body=body)
        assert (status, b"gateway_request_invalid" in answer) == (400, True)
        assert not gate.provider.asked


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent?alt=sse"])
async def test_gemini_s_usage_equals_what_was_billed_and_its_key_stays_here(tmp_path: Path, verb: str) -> None:
    async with gates.opened(tmp_path, limits=jobs.Budget(cost=1)) as gate:
        document = {"contents": [{"parts": [{"text": "x" * 4000}]}], "generationConfig": {"maxOutputTokens": 100}}
        status, _, body = await gate.ask(f"/gemini/v1beta/models/gemini-2.5-flash:{verb}", document)
        assert (status, b"usageMetadata" in body) == (200, True)
        fresh, cached, output = gate.provider.billed
        assert gate.totals.used == usage.Usage(input=fresh, cached=cached, output=output)
        assert (gate.totals.tool_calls, gate.totals.calls, gate.totals.estimated) == (1, 1, 0)
        assert gate.ends() == ["completed"]
        (asked,) = gate.provider.asked
        assert asked.headers["x-goog-api-key"] == gates.KEY
        assert gate.token not in str(asked.headers)


async def test_an_answer_of_gemini_that_breaks_off_is_counted_by_an_estimate(tmp_path: Path) -> None:
    async with gates.opened(tmp_path) as gate:
        gate.provider.scenario = "cut"
        with pytest.raises(streams.Gone):
            await gate.ask("/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", {"contents": []})
        assert gate.totals.estimated == 1

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.protocol import wire
from agentina.runners.streams import events, formats, reading, values

RECORDINGS = Path(__file__).parents[2] / "data/cli-streams"
PREFIXES = {"claude": "claude-code", "codex": "codex", "opencode": "opencode", "gemini": "gemini"}
ALL = sorted(RECORDINGS.glob("*.jsonl"))


def format_of(name: str) -> str:
    return PREFIXES[name.removeprefix("sig_").partition("_")[0]]


def read(content: bytes, name: str, *, cuts: list[int] | None = None) -> reading.Reader:
    reader = reading.Reader(formats.FORMATS[name])
    at = 0
    for cut in [*sorted(cuts or []), len(content)]:
        reader.feed(content[at:cut])
        at = max(at, cut)
    reader.end()
    return reader


def run(name: str) -> wire.AgentRun:
    return read((RECORDINGS / f"{name}.jsonl").read_bytes(), format_of(name)).account.summary()


def line(**fields: Any) -> bytes:
    return msgspec.json.encode(fields) + b"\n"


# --- the recordings -------------------------------------------------------------------------------------------------


def test_claude_success() -> None:
    assert run("claude_ok") == wire.AgentRun(
        session_id="473c6de2-ab57-4fa3-8627-cbc3b6176cad", model="claude-opus-4-8[1m]", version="2.1.197",
        turns=2, tool_calls=1, tokens=wire.Tokens(input=200, cached_input=60, cache_write=40, output=47),
        cost_usd=0.002455, tokens_of_session=True, context_tokens=150, context_window=1_000_000, answer="done",
        finished=True,
        tools=[wire.ToolUse(name="Bash", calls=1)],
    )  # fmt: skip


def test_codex_success() -> None:
    assert run("codex_tool") == wire.AgentRun(
        session_id="01a1fd2a-f587-75a0-9279-7744a3a9132d", tool_calls=1, answer="done", finished=True,
        tokens=wire.Tokens(input=140, cached_input=60, output=80, reasoning=10), tokens_of_session=True,
        tools=[wire.ToolUse(name="shell", calls=1)],
    )  # fmt: skip


def test_opencode_success() -> None:
    assert run("opencode_ok") == wire.AgentRun(
        session_id="ses_e00e9f075ffezEhQcYgeQbB4AW", turns=2, tool_calls=1, answer="Done: hello.txt is written.",
        tokens=wire.Tokens(input=7739, cached_input=7737, output=84), cost_usd=0.012165 + 0.012312,
        context_tokens=7787, finished=True,
        tools=[wire.ToolUse(name="bash", calls=1)],
    )  # fmt: skip


def test_gemini_success() -> None:
    assert run("gemini_ok") == wire.AgentRun(
        session_id="b760495c-e369-445b-ba73-1770f97e802a", model="gemini-2.5-flash", tool_calls=1,
        tokens=wire.Tokens(input=12262, cached_input=12261, output=84), answer="Done: hello.txt is written.",
        finished=True,
        tools=[wire.ToolUse(name="run_shell_command", calls=1)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("claude_bad", "api-400", "API Error: 400 budget exceeded for job j1"),
        ("claude_budget", "api-403", "403 budget exceeded"),
        ("claude_noretry", "api-429", "budget exceeded"),
        ("claude_p402", "api-402", "402"),
        ("claude_turns", "max-turns", "Reached maximum number of turns (2)"),
        ("claude_usd", "max-budget-usd", "Reached maximum budget ($0.003)"),
        ("sig_claude_INT", "during-execution", "ede_diagnostic"),
        ("claude_p402_2.1.330", "api-402", "fake server says 402"),
        ("claude_turns_2.1.330", "max-turns", "Reached maximum number of turns (2)"),
        ("codex_bad", "turn-failed", "budget exceeded for job j1"),
        ("codex_budget", "turn-failed", "unexpected status 403 Forbidden: budget exceeded"),
        ("codex_noretry", "turn-failed", "429 Too Many Requests"),
        ("codex_quota", "turn-failed", "Quota exceeded. Check your plan and billing details."),
        ("opencode_p402", "api-402", "fake server says 402"),
        ("gemini_p402", "unknown", "fake server says 402"),
        ("gemini_turns", "max-turns", "Reached max session turns"),
    ],
)
def test_failures_have_a_kind_and_words(name: str, kind: str, words: str) -> None:
    summary = run(name)
    assert (summary.finished, summary.failed, summary.error_kind) == (True, True, kind)
    assert words in summary.error
    assert not summary.error.startswith("{")


@pytest.mark.parametrize("name", ["sig_claude_KILL", "sig_codex_INT", "sig_codex_KILL", "sig_codex_TERM"])
def test_a_killed_run_has_no_end_but_its_session(name: str) -> None:
    summary = run(name)
    assert (summary.finished, summary.failed) == (False, False)
    assert summary.session_id
    assert summary.tool_calls == 1
    assert "sleep 25" in summary.doing


def test_tools_are_told_apart_and_bounded() -> None:
    account = reading.Account()
    for number in range(40):
        account.take(events.ToolCall(id=str(number), name=f"tool-{number % 35}"))
        account.take(events.ToolResult(id=str(number), is_error=number >= 35))
    account.take(events.Denied("tool-0"))
    summary = account.summary()
    assert (summary.tool_calls, summary.tool_errors, summary.denials) == (40, 5, 1)
    assert len(summary.tools) == wire.MAX_TOOLS
    assert summary.tools[0] == wire.ToolUse(name="tool-0", calls=2, errors=1, denials=1)


def test_a_run_that_still_tries_again_tells_of_it() -> None:
    summary = run("claude_rate")
    assert (summary.finished, summary.retries) == (False, 8)
    assert summary.error.startswith("unknown")
    assert run("codex_rate").retries == 5


@pytest.mark.parametrize("name", ["claude_{}_2.1.330", "codex_{}_0.163"])
def test_newer_versions_say_the_same(name: str) -> None:
    first, again = run(name.format("ok")), run(name.format("resumed"))
    assert (first.finished, first.failed, first.tool_calls) == (True, False, 1)
    assert (again.session_id, again.answer) == (first.session_id, "Hello, this is the fake model.")
    assert first.tokens_of_session
    assert first.tokens is not None
    assert again.tokens is not None
    assert again.tokens.output == first.tokens.output + 42
    assert (again.cost_usd or 1) > (first.cost_usd or 0)


def test_a_resumed_thread_counts_from_its_beginning() -> None:
    summary = run("codex_mig")
    assert summary.tokens_of_session
    assert summary.tokens is not None
    assert summary.tokens.input + summary.tokens.cached_input == 200


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_no_line_of_a_recording_is_unreadable_and_any_cut_gives_the_same(path: Path) -> None:
    content = path.read_bytes()
    whole = read(content, format_of(path.stem))
    assert whole.account.unreadable == 0
    assert whole.offset == len(content)
    random_ = random.Random(path.stem)
    for _ in range(20):
        cuts = [random_.randrange(len(content)) for _ in range(random_.randrange(1, 40))]
        assert read(content, format_of(path.stem), cuts=cuts).account.summary() == whole.account.summary()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recording_cut_anywhere_is_a_run_without_a_success(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for most in range(len(lines)):
        cut = b"".join(lines[:most]) + lines[most][: len(lines[most]) // 2]
        summary = read(cut, format_of(path.stem)).account.summary()
        assert not (summary.finished and not summary.failed), most


# --- what else may be in the file -----------------------------------------------------------------------------------


def test_other_output_is_passed_over() -> None:
    content = (RECORDINGS / "claude_ok.jsonl").read_bytes()
    noise = b'warning: something\n\n[1, 2]\n{broken\n\xff\xfe\n{"type": 5}\n{}\n{"type":"new_thing","x":{}}\n'
    mixed = noise + noise.join(content.splitlines(keepends=True)) + noise
    reader = read(mixed, "claude-code")
    assert reader.account.summary() == run("claude_ok")
    assert reader.account.unreadable


def test_a_line_without_its_end_counts_when_it_is_whole() -> None:
    content = (RECORDINGS / "codex_ok.jsonl").read_bytes().rstrip(b"\n")
    assert read(content, "codex").account.summary().finished


def test_a_line_longer_than_the_longest_is_passed_over_and_not_kept() -> None:
    reader = reading.Reader(formats.FORMATS["codex"])
    reader.feed(b'{"type":"thread.started","thread_id":"')
    for _ in range(2 * reading.LONGEST_LINE // 65_536):
        reader.feed(b"x" * 65_536)
        assert len(reader._rest) <= reading.LONGEST_LINE + 65_536
    reader.feed(b'"}\n' + line(type="thread.started", thread_id="t"))
    assert reader.account.summary().session_id == "t"
    assert reader.account.unreadable == 1


def test_long_answers_are_cut_and_say_so() -> None:
    text = "é" * (wire.MAX_ANSWER + 1)
    said = line(type="item.completed", item={"type": "agent_message", "text": text})
    summary = read(said + line(type="turn.completed", usage={}), "codex").account.summary()
    assert (summary.answer, summary.answer_truncated) == (text[:-1], True)
    pieces = line(type="message", role="assistant", content="x" * 1000, delta=True) * 20
    summary = read(pieces + line(type="result", status="success"), "gemini").account.summary()
    assert (len(summary.answer), summary.answer_truncated) == (wire.MAX_ANSWER, True)
    result = line(type="result", subtype="success", is_error=False, result=text)
    assert read(result, "claude-code").account.summary().answer_truncated


def test_what_is_done_after_an_end_takes_the_end_back() -> None:
    end = line(type="turn.completed", usage={"input_tokens": 1})
    assert not read(end + line(type="turn.started"), "codex").account.is_finished
    assert read(end + line(type="turn.started") + end, "codex").account.is_finished


def test_of_several_results_the_last_counts_and_nothing_is_added() -> None:
    def result(cost: float, text: str) -> bytes:
        usage = {"m": {"inputTokens": 10, "outputTokens": int(cost)}}
        return line(
            type="result", subtype="success", is_error=False, result=text, total_cost_usd=cost, modelUsage=usage
        )

    summary = read(result(1.0, "first") + result(3.0, "second"), "claude-code").account.summary()
    assert (summary.answer, summary.cost_usd) == ("second", 3.0)
    assert summary.tokens == wire.Tokens(input=10, output=3)


def test_the_denied_are_counted() -> None:
    denied = line(type="system", subtype="permission_denied", tool_name="Bash")
    assert read(denied, "claude-code").account.summary().denials == 1
    result = line(type="result", subtype="success", is_error=False, result="", permission_denials=[{}, {}])
    assert read(denied + result, "claude-code").account.summary().denials == 2


def test_a_result_that_does_not_say_that_it_is_none_is_an_error() -> None:
    assert read(line(type="result", subtype="success", result="x"), "claude-code").account.summary().failed
    assert read(line(type="result", is_error=False, result="x"), "claude-code").account.summary().failed
    assert read(line(type="result"), "gemini").account.summary().failed


def test_who_gives_up_and_claims_a_success_has_none() -> None:
    """Gemini CLI 0.61.0 ends so when its own detection of loops stops it."""
    gave_up = line(type="error", severity="warning", message="Loop detected, stopping execution")
    summary = read(gave_up + line(type="result", status="success"), "gemini").account.summary()
    assert (summary.finished, summary.failed, summary.error_kind) == (True, True, "loop")
    assert summary.error == "Loop detected, stopping execution"
    warned = line(type="error", severity="warning", message="something else")
    assert not read(warned + line(type="result", status="success"), "gemini").account.summary().failed


def test_subagents_say_nothing_for_the_answer_nor_for_the_context() -> None:
    message = {"id": "m", "content": [{"type": "text", "text": "inner"}], "usage": {"input_tokens": 9}}
    summary = read(line(type="assistant", message=message, parent_tool_use_id="t"), "claude-code").account.summary()
    assert (summary.answer, summary.context_tokens, summary.turns) == ("", None, 1)


def test_open_tools_are_bounded() -> None:
    account = reading.Account()
    for number in range(5000):
        account.take(events.ToolCall(id=str(number), name="x"))
    assert account.summary().tool_calls == 5000
    assert len(account._tools) <= 1000


def test_events_tell_of_tools() -> None:
    reader = reading.Reader(formats.FORMATS["claude-code"])
    happened = reader.feed((RECORDINGS / "claude_ok.jsonl").read_bytes())
    call = next(event for event in happened if isinstance(event, events.ToolCall))
    result = next(event for event in happened if isinstance(event, events.ToolResult))
    assert (call.name, call.id) == ("Bash", result.id)
    assert "echo hi" in call.arguments
    assert (result.text, result.is_error) == ("hi", False)


# --- anything at all ------------------------------------------------------------------------------------------------

_KEYS = [
    "type", "subtype", "message", "content", "text", "id", "item", "status", "usage", "part", "state", "tokens",
    "cost", "error", "data", "result", "is_error", "stats", "role", "delta", "session_id", "sessionID", "thread_id",
    "total_cost_usd", "modelUsage", "permission_denials", "num_turns", "errors", "tool", "input", "cached",
    "input_tokens", "inputTokens", "cache", "read", "write", "reason", "metadata", "exit", "exit_code",
]  # fmt: skip
_WORDS = [
    "system", "init", "assistant", "user", "result", "success", "text", "tool_use", "tool_result", "item.completed",
    "item.started", "turn.completed", "turn.failed", "error", "agent_message", "command_execution", "step_finish",
    "step_start", "stop", "message", "api_retry", "{", '{"error": {"message": "x"}}',
]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=6),
    max_leaves=12,
)  # fmt: skip
_LINES = st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=8).map(lambda found: {"type": "result"} | found)


@pytest.mark.parametrize("name", formats.FORMATS)
@given(documents=st.lists(_LINES, max_size=6), garbage=st.binary(max_size=40), cuts=st.lists(st.integers(0, 500)))
def test_nothing_a_stream_holds_breaks_the_account(
    name: str, documents: list[dict[str, Any]], garbage: bytes, cuts: list[int]
) -> None:
    content = garbage.join(line(**document) for document in documents)
    reader = read(content, name, cuts=[cut for cut in cuts if cut <= len(content)])
    summary = reader.account.summary()
    # What is reported must be accepted by who gets it.
    assert msgspec.json.decode(msgspec.json.encode(summary), type=wire.AgentRun) == summary
    assert summary == read(content, name).account.summary()


@pytest.mark.parametrize("words", ["", "plain", '{"error": {"message": "m"}}', '{"message": "m"}', "{nothing", {}])
def test_errors_are_read_out_of_json(words: Any) -> None:
    assert values.problem(words) in {"", "plain", "m", "{nothing"}
    deep: Any = "x"
    for _ in range(20):
        deep = {"error": deep}
    assert values.problem(deep) == ""

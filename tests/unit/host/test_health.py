from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.host.work import health
from agentina.protocol import jobs
from agentina.runners.streams import events, formats, reading

RECORDED = Path(__file__).parents[2] / "data/cli-streams"
POLICY = jobs.Health(stuck_after=100, loop_after=6, context_at=0.9)


def signals(
    at: float, *, output: int = 0, cpu: float | None = 0.0, passed: int = 0, waits: bool = False
) -> health.Signals:
    return health.Signals(at=at, output_bytes=output, cpu_seconds=cpu, gateway_bytes=passed, waits=waits)


def call(
    number: int, name: str, result: str = "same", *, arguments: str = "", is_error: bool = False
) -> list[events.Event]:
    return [
        events.ToolCall(id=str(number), name=name, arguments=arguments),
        events.ToolResult(id=str(number), text=result, is_error=is_error),
    ]


def heard(calls: Iterable[list[events.Event]], policy: jobs.Health = POLICY) -> list[health.Finding]:
    """What is found when calls come one after the other, looked at after each, with signs of life."""
    watch = health.Watch(policy, 0.0)
    found = []
    for number, happened in enumerate(calls):
        watch.hear(happened)
        found += watch.look(signals(number, output=number))
    return found


# --- stuck -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "is_stuck"),
    [
        (signals(100), True),
        (signals(99), False),
        (signals(100, output=1), False),
        (signals(100, passed=1), False),
        (signals(100, waits=True), False),
        (signals(100, cpu=1.0), False),
        (signals(100, cpu=0.9), True),
        (signals(100, cpu=None), True),
    ],
)
def test_stuck_is_what_gives_no_sign_of_life_by_any_signal(last: health.Signals, is_stuck: bool) -> None:  # noqa: FBT001
    watch = health.Watch(POLICY, 0.0)
    assert not watch.look(signals(0))
    assert [found.kind for found in watch.look(last)] == (["stuck"] if is_stuck else [])


def test_stuck_is_reported_once_then_due_once_and_again_after_a_sign_of_life() -> None:
    watch = health.Watch(POLICY, 0.0)
    watch.hear([events.ToolCall(id="1", name="Bash", arguments="ssh host")])
    watch.look(signals(0))
    (first,) = watch.look(signals(120))
    assert (first.kind, first.is_due, first.evidence) == ("stuck", False, {"it waits for": "Bash ssh host"})
    assert not watch.look(signals(199))
    (due,) = watch.look(signals(200))
    assert due.is_due
    assert not watch.look(signals(900))
    assert not watch.look(signals(901, output=1))
    (again,) = watch.look(signals(1001, output=1))
    assert not again.is_due
    assert not watch.look(signals(1300, output=1))


@given(st.lists(st.tuples(st.floats(0, 300), st.integers(0, 2)), max_size=50))
def test_nothing_is_stuck_that_was_alive_within_the_threshold(steps: list[tuple[float, int]]) -> None:
    watch = health.Watch(POLICY, 0.0)
    now, output, alive = 0.0, 0, 0.0
    watch.look(signals(now))
    for pause, written in steps:
        now, output = now + pause, output + written
        alive = now if written else alive
        found = watch.look(signals(now, output=output))
        assert all(now - alive >= POLICY.stuck_after for one in found if one.kind == "stuck")


# --- looping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("AAAAAA", "the same call with the same results, 6 calls in a row"),
        ("ABABAB", "the same 2 calls in turn with the same results, 6 calls in a row"),
        ("xyABABAB", "the same 2 calls in turn"),
        ("ABCABCABC", "the same 3 calls in turn with the same results, 9 calls in a row"),
        ("ABCDABCDABCD", "the same 4 calls in turn"),
        ("AABAABAAB", "the same 3 calls in turn"),
    ],
)
def test_loop_is_found_with_the_call_that_closes_it(names: str, words: str) -> None:
    calls = [call(number, name) for number, name in enumerate(names)]
    assert not heard(calls[:-1])
    (found,) = heard(calls)
    assert found.kind == "looping"
    assert words in found.text
    assert found.evidence == {"last call": names[-1]}


@pytest.mark.parametrize("names", ["AAAAA", "ABABA", "ABCABC", "AAABBB", "ABCDEFGH", "AABBAABB", "AAAAABAAAAAB"])
def test_what_is_no_loop_yet(names: str) -> None:
    assert not heard([call(number, name) for number, name in enumerate(names)])


def test_same_call_with_other_results_or_arguments_is_no_loop() -> None:
    assert not heard([call(n, "test", f"{n} tests failed") for n in range(50)])
    assert not heard([call(n, "read", arguments=f"file{n}") for n in range(50)])


POLLS = [
    ("Bash", '{"command":"sleep 30; gh run view 7"}'), ("BashOutput", '{"bash_id":"bash_1"}'),
    ("shell", "/bin/bash -lc 'sleep 5 && curl -sf localhost:80'"), ("write_stdin", '{"chars":""}'),
    ("mcp__agentina__answer", '{"question":1}'), ("agentina.answer", '{"question":1}'), ("exec_command", "wait 7"),
    ("run_shell_command", '{"command":"until test -e x; do sleep 1; done"}'),
]  # fmt: skip


@pytest.mark.parametrize("is_error", [False, True])
@pytest.mark.parametrize(("name", "arguments"), POLLS)
def test_agent_that_polls_is_well_for_long(name: str, arguments: str, is_error: bool) -> None:  # noqa: FBT001
    calls = [
        call(number, name, "pending" if not is_error else f"exit {number}", arguments=arguments, is_error=is_error)
        for number in range(health.PATIENCE * 8)
    ]
    assert not heard(calls[:-1], jobs.Health())
    assert [found.kind for found in heard(calls, jobs.Health())] == ["looping"]


def test_agent_that_polls_by_turns_is_well_for_long() -> None:
    """Waits with one tool and looks with another."""
    turns = [
        [call(n, "Bash", "", arguments="sleep 20"), call(n, "Read", "pending", arguments="state")] for n in range(39)
    ]
    assert not heard([one for turn in turns for one in turn], jobs.Health())
    assert heard([call(n, "Read", "pending", arguments="sleep.txt") for n in range(8)], jobs.Health())


@pytest.mark.parametrize(
    "names",
    [
        "EtEtEtEt",  # a test that fails alike after each other edit
        "RRRRRRR",  # a file read again and again, not yet eight times
        "RERERERER",
    ],
)
def test_honest_work_is_well_by_default(names: str) -> None:
    honest = {"E": lambda n: call(n, "Edit", "ok", arguments=f"change {n}"), "R": lambda n: call(n, "Read"),
              "t": lambda n: call(n, "Bash", "1 failed", arguments="make test", is_error=True)}  # fmt: skip
    assert not heard([honest[name](number) for number, name in enumerate(names)], jobs.Health())


@pytest.mark.parametrize("sign", ["output", "cpu", "passed", "waits"])
def test_run_with_any_one_sign_of_life_is_never_stuck_by_default(sign: str) -> None:
    """A compile (processor time alone), an answer or download of an hour (bytes at the gateway alone), a person."""
    policy = jobs.Health()
    watch = health.Watch(policy, 0.0)
    period = health.period(policy)
    for step in range(int(4 * policy.stuck_after / period)):
        alive: dict[str, Any] = {"output": step, "cpu": step * period / 2, "passed": 100 * step, "waits": True}
        assert not watch.look(signals(step * period, **{sign: alive[sign]}))


def test_loop_is_due_at_twice_its_threshold_and_over_with_another_call() -> None:
    found = heard([call(n, "A") for n in range(30)] + [call(30, "B")] + [call(31 + n, "A") for n in range(7)])
    assert [(one.kind, one.is_due) for one in found] == [("looping", False), ("looping", True), ("looping", False)]


def test_same_error_is_a_loop_whatever_was_tried() -> None:
    errors = [
        call(n, "Bash", f"/tmp/x{n}/a: line {n}: npm: not found", arguments=f"npm run {n}", is_error=True)
        for n in range(6)
    ]
    assert not heard(errors[:-1])
    (found,) = heard(errors)
    assert found.text == "the same tool failed alike 6 times in a row"
    assert not heard([*errors[:-1], call(9, "Bash", "ok"), errors[-1]])
    assert not heard(call(n, "Bash", f"error {'x' * n}", is_error=True) for n in range(50))


@given(st.text("AB", max_size=40), st.integers(1, 4))
def test_loops_are_those_of_a_plain_definition(names: str, most: int) -> None:
    """The shortest part that the last calls repeat at least three times, and how far back it goes."""
    loops = health.Loops()
    for name in names:
        loops.take(name.encode())
    for length in range(1, health.LONGEST_LOOP + 1):
        calls = length
        while calls < len(names) and names[-calls - 1] == names[-calls - 1 + length]:
            calls += 1
        if len(names) > length and calls > length and calls // length >= health.LEAST_TURNS:
            assert (loops.length, loops.calls) == (length, calls)
            return
    assert (loops.length, loops.calls) == (0, 0)


# --- context ---------------------------------------------------------------------------------------------------------


def test_context_is_reported_when_nearly_full_and_again_after_it_was_emptied() -> None:
    watch = health.Watch(POLICY, 0.0)
    found = []
    for number, tokens in enumerate([10, 95, 99, 85, 95, 70, 92]):
        watch.hear([events.Context(tokens=tokens, window=100 if number == 0 else None)])
        found.append([one.text for one in watch.look(signals(number, output=number))])
    full = "{} of 100 tokens of the context are filled"
    assert found == [[], [full.format(95)], [], [], [], [], [full.format(92)]]


@pytest.mark.parametrize(("model", "wished", "window"), [("x[1m]", None, 1_000_000), ("x", 1000, 1000), ("x", None, 0)])
def test_context_of_claude_code_is_known_while_it_runs(model: str, wished: int | None, window: int) -> None:
    """By the model's name, or the job's word: its own word comes with its result."""
    reader = reading.Reader(formats.FORMATS["claude-code"])
    watch = health.Watch(jobs.Health(context_window=wished), 0.0)
    used = {"input_tokens": 10, "cache_read_input_tokens": int(window * 0.9) or 190_000}
    for line in (
        {"type": "system", "subtype": "init", "model": model, "session_id": "s"},
        {"type": "assistant", "message": {"id": "m", "model": model, "content": [], "usage": used}},
    ):
        watch.hear(reader.feed(json.dumps(line).encode() + b"\n"))
    assert [found.kind for found in watch.look(signals(0))] == (["context"] if window else [])


@pytest.mark.parametrize(
    ("own", "said", "metered", "expected"),
    [
        (None, (None, None), (None, None), (None, None)),
        # Codex and Gemini say nothing, opencode not of how much, Claude Code all of it in the end.
        (None, (None, None), (95, 100), (95, 100)),
        (None, (10, None), (95, 100), (10, 100)),
        (None, (10, 200), (95, 100), (10, 200)),
        (None, (0, None), (95, None), (0, None)),
        # A command line may work within less than the model has.
        (50, (None, None), (95, 100), (95, 50)),
        (50, (10, 200), (95, 100), (10, 50)),
    ],
)
def test_stream_goes_before_the_gateway(
    own: int | None, said: health.Fill, metered: health.Fill, expected: health.Fill
) -> None:
    assert health.fill(own=own, said=said, metered=metered) == expected


def test_context_is_reported_by_the_gateways_account_alone() -> None:
    watch = health.Watch(POLICY, 0.0)
    found = []
    for number, tokens in enumerate([None, 10, 95, 99, 70, 92]):
        now = dataclasses.replace(signals(number, output=number), context=(tokens, 100))
        found += [one.text for one in watch.look(now)]
    assert found == [f"{tokens} of 100 tokens of the context are filled" for tokens in (95, 92)]


# --- as recorded, and rules that are off -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_recorded_runs_are_well(path: Path) -> None:
    names = {"claude": "claude-code"}
    word = path.stem.removeprefix("sig_").partition("_")[0]
    reader = reading.Reader(formats.FORMATS[names.get(word, word)])
    watch = health.Watch(jobs.Health(), 0.0)
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        watch.hear(reader.feed(line))
        found += watch.look(signals(number, output=number))
    assert not found


@pytest.mark.parametrize("stem", ["claude_ok_2.1.330", "codex_tool", "gemini_ok", "opencode_ok"])
def test_recorded_run_that_goes_in_circles_is_found(stem: str) -> None:
    """The calls of a recording, over and over: as each command line would tell of them."""
    word = stem.partition("_")[0]
    reader = reading.Reader(formats.FORMATS["claude-code" if word == "claude" else word])
    watch = health.Watch(POLICY, 0.0)
    lines = (RECORDED / f"{stem}.jsonl").read_bytes()
    for _ in range(POLICY.loop_after):
        watch.hear(reader.feed(lines))
    assert [one.kind for one in watch.look(signals(1, output=1))] == ["looping"]


@given(st.lists(st.sampled_from("AB"), max_size=60))
def test_rules_that_are_off_find_nothing(names: list[str]) -> None:
    off = jobs.Health(stuck_after=0, loop_after=0, context_at=0)
    watch = health.Watch(off, 0.0)
    for number, name in enumerate(names):
        watch.hear([*call(number, name, is_error=True), events.Context(tokens=100, window=100)])
        assert not watch.look(signals(number * 10_000.0))


def test_period_goes_by_the_shortest_threshold() -> None:
    assert health.period(jobs.Health()) == 15.0
    assert health.period(jobs.Health(stuck_after=20)) == 1.0
    assert health.period(jobs.Health(stuck_after=0)) == 15.0

from __future__ import annotations

import pytest

from agentina.cli import agent_run
from agentina.protocol import wire


def shown(capsys: pytest.CaptureFixture[str], run: wire.AgentRun, *, is_resumed: bool = False) -> str:
    agent_run.render(run, is_resumed=is_resumed)
    return capsys.readouterr().out


def test_what_is_not_known_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, wire.AgentRun()) == "  tool calls  0\n"


def test_everything_is_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = wire.AgentRun(
        session_id="s", model="m", version="2", turns=3, doing="Bash ls", tool_calls=5, tool_errors=2, denials=1,
        retries=4, tokens=wire.Tokens(input=1000, output=7, reasoning=5), tokens_of_session=True, cost_usd=1234.5,
        context_tokens=50, context_window=200, answer="first\nsecond", answer_truncated=True, error_kind="max-turns",
        error="too many",
    )  # fmt: skip
    assert shown(capsys, run, is_resumed=True).splitlines() == [
        "  agent          m 2",
        "  session        s",
        "  turns          3",
        "  waits for      Bash ls",
        "  tool calls     5, 2 failed, 1 denied",
        "  model retries  4",
        "  tokens         1,000 in, 7 out (5 of it reasoning), since its session began",
        "  cost           $1,234.5000 by its own account, since its session began",
        "  context        50 of 200 tokens filled (25 %)",
        "  error          max-turns: too many",
        "  answer",
        "    first",
        "    second",
        "    … (cut off; the job's output has all of it)",
    ]


def test_a_run_that_began_its_session_has_no_earlier_ones(capsys: pytest.CaptureFixture[str]) -> None:
    run = wire.AgentRun(tokens=wire.Tokens(output=7), tokens_of_session=True, cost_usd=0.5)
    assert "since" not in shown(capsys, run)


def test_nothing_an_agent_says_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\u202eevil\x9b"
    text = shown(
        capsys, wire.AgentRun(answer=evil, model=evil, session_id=evil, version=evil, error=evil, error_kind=evil)
    )
    assert all(character.isprintable() for character in text.replace("\n", ""))

"""What an AI agent's command line said of its run, for people."""

from __future__ import annotations

from agentina.cli import output
from agentina.protocol import units, wire


def render(run: wire.AgentRun, *, is_resumed: bool = False) -> None:
    """Print the account of a run, the answer last and as it was written, but for control characters."""
    since = ", since its session began" if is_resumed and run.tokens_of_session else ""
    output.pairs(
        [
            ("agent", " ".join(filter(None, (output.clean(run.model), output.clean(run.version))))),
            ("program", output.clean(run.program)),
            ("session", output.clean(run.session_id)),
            ("turns", run.turns),
            ("waits for", output.clean(run.doing)),
            ("tool calls", _calls(run)),
            ("model retries", run.retries or ""),
            ("tokens", _tokens(run, since)),
            ("cost", "" if run.cost_usd is None else f"${run.cost_usd:,.4f} by its own account{since}"),
            ("context", _context(run)),
            ("error", ": ".join(filter(None, (output.clean(run.error_kind), output.clean(run.error))))),
        ],
        indent=2,
    )
    if run.answer:
        output.answer("  answer")
        for line in run.answer.splitlines():
            output.answer(f"    {output.clean(line)}".rstrip())
        if run.answer_truncated:
            output.answer("    … (cut off; the job's output has all of it)")


def _calls(run: wire.AgentRun) -> str:
    parts = [str(run.tool_calls)]
    parts += [f"{run.tool_errors} failed"] if run.tool_errors else []
    parts += [f"{run.denials} denied"] if run.denials else []
    return ", ".join(parts)


def _tokens(run: wire.AgentRun, since: str) -> str:
    tokens = run.tokens
    if tokens is None:
        return ""
    parts = [(tokens.input, "in"), (tokens.cached_input, "in from cache"), (tokens.cache_write, "in to cache")]
    shown = [f"{number:,} {words}" for number, words in parts if number]
    reasoning = f" ({tokens.reasoning:,} of it reasoning)" if tokens.reasoning else ""
    return ", ".join([*shown, f"{tokens.output:,} out{reasoning}"]) + since


def _context(run: wire.AgentRun) -> str:
    if run.context_tokens is None:
        return ""
    if not run.context_window:
        return f"{units.show_count(run.context_tokens, 'token')} filled"
    share = 100 * run.context_tokens / run.context_window
    return f"{run.context_tokens:,} of {run.context_window:,} tokens filled ({share:.0f} %)"

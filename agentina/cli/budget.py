"""``agentina budget``: what organizations, agents and jobs may use of models."""

from __future__ import annotations

import decimal
from typing import Any, Final

import click

from agentina import errors
from agentina.cli import agent_names, connection, lazy, options, output
from agentina.client import api as api_client
from agentina.protocol import budgets, units

_NAMES: Final = {"tokens": "tokens", "cost_nano": "cost", "tool_calls": "tool calls"}


@click.group(cls=lazy.NounGroup)
def budget() -> None:
    """See and set what organizations, agents and jobs may use of models."""


def _whose(command: Any) -> Any:
    for option in (
        click.option("--organization", metavar="NAME", help="All agents of this organization together, each day."),
        click.option("--agent", metavar="AGENT", type=agent_names.AgentName(), help="This agent, each day."),
        click.option("--job", metavar="JOB", help="Each task of this job."),
    ):
        command = option(command)
    return command


class _Money(click.ParamType):  # type: ignore[type-arg]  # only newer versions of click have it generic
    """US dollars as people write them, in whole nano-dollars."""

    name = "dollars"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read an amount; what is finer than a nano-dollar is refused rather than rounded."""
        if isinstance(value, int):
            return value
        try:
            nano = decimal.Decimal(str(value).removeprefix("$")) * budgets.DOLLAR
        except decimal.InvalidOperation:
            self.fail(f"{value!r} is no amount in US dollars, such as 12.50", param, ctx)
        if not nano.is_finite() or nano < 0 or nano != nano.to_integral_value():
            self.fail(f"{value!r} is no amount in US dollars, such as 12.50", param, ctx)
        if nano > budgets.MOST:
            self.fail(f"{value!r} is more than a budget can be, {budgets.show_money(budgets.MOST)}", param, ctx)
        return int(nano)


def _amounts(command: Any) -> Any:
    for option in (
        click.option("--duration", type=options.Duration(), help="Time from a task's start; of a job only."),
        click.option("--tool-calls", type=click.IntRange(0, budgets.MOST), help="Tools the models may ask for."),
        click.option("--cost", "cost_nano", type=_Money(), help="US dollars."),
        click.option("--tokens", type=click.IntRange(0, budgets.MOST), help="Tokens, without those read from a cache."),
    ):
        command = option(command)
    return command


@budget.command("list", epilog=options.examples("agentina budget list", "agentina budget list --json"))
@options.root_option
@options.json_option
def list_budgets(*, as_json: bool) -> None:
    """List the daily budgets of organizations and agents, and what is used of them today (UTC)."""
    with connection.open_client() as client:
        found = client.list_budgets()
    if as_json:
        output.document(output.whole(found))
        return
    rows = [
        (view.scope, view.label or view.name, *_cells(view), view.on_exhausted, len(view.parked) or "-")
        for view in found.budgets
    ]
    output.table(("BUDGET OF", "NAME", "TOKENS", "COST", "TOOL CALLS", "AT THE LIMIT", "PARKED"), rows)


@budget.command(
    epilog=options.examples(
        "agentina budget show --organization acme", "agentina budget show --job job_0123456789abcdef"
    )
)
@_whose
@options.root_option
@options.json_option
def show(*, organization: str | None, agent: str | None, job: str | None, as_json: bool) -> None:
    """Show a budget, what is used of it, what is left, and which tasks are held for it."""
    subject = _subject(organization, agent, job)
    with connection.open_client() as client:
        _print(client.get_budget(*_resolved(client, subject)), as_json=as_json)


@budget.command(
    "set",
    epilog=options.examples(
        "agentina budget set --organization acme --cost 50 --on-exhausted park",
        "agentina budget set --agent build-3 --tokens 5000000 --cost 10",
        "agentina budget set --organization acme --none",
    ),
)  # fmt: skip
@_whose
@_amounts
@click.option("--on-exhausted", type=click.Choice(["stop", "park"]), help="Refuse calls at the limit, or hold them.")
@click.option("--none", "is_none", is_flag=True, help="No budget at all any more; not for a job.")
@options.root_option
@options.json_option
def set_budget(
    *, organization: str | None, agent: str | None, job: str | None, is_none: bool, as_json: bool, **wanted: Any
) -> None:
    """Set all limits of a budget: what is not given is not limited any more."""
    subject = _subject(organization, agent, job)
    limits = [value for key, value in wanted.items() if key != "on_exhausted" and value is not None]
    if is_none == bool(limits):
        raise errors.USAGE(problem="Give limits, or --none.")
    with connection.open_client() as client:
        subject = _resolved(client, subject)
        if is_none:
            client.remove_budget(*subject)
            if as_json:
                output.document({"scope": subject[0], "name": subject[1], "removed": True})
            else:
                output.answer(f"There is no budget of this {subject[0]} any more.")
            return
        _print(client.set_budget(*subject, budgets.BudgetSet(**wanted)), as_json=as_json)


@budget.command(
    "raise",
    epilog=options.examples(
        "agentina budget raise --job job_0123456789abcdef --cost 5",
        "agentina budget raise --organization acme --cost 20",
    ),
)
@_whose
@_amounts
@options.root_option
@options.json_option
def raise_budget(*, organization: str | None, agent: str | None, job: str | None, as_json: bool, **more: Any) -> None:
    """Add to a budget; tasks that are held for it go on within seconds.

    To a job's limits it is added for good, to those of an organization or agent for today (UTC).
    """
    subject = _subject(organization, agent, job)
    given = {key: value for key, value in more.items() if value}
    if not given:
        raise errors.USAGE(problem="Give what to add: --tokens, --cost, --tool-calls or --duration.")
    with connection.open_client() as client:
        _print(client.raise_budget(*_resolved(client, subject), budgets.BudgetRaise(**given)), as_json=as_json)


def _subject(organization: str | None, agent: str | None, job: str | None) -> tuple[str, str]:
    given = [(scope, name) for scope, name in (("organization", organization), ("agent", agent), ("job", job)) if name]
    if len(given) != 1:
        raise errors.USAGE(problem="Give one of --organization, --agent and --job.")
    return given[0]


def _resolved(client: api_client.Client, subject: tuple[str, str]) -> tuple[str, str]:
    scope, name = subject
    return scope, agent_names.resolve(client, name) if scope == "agent" else name


def _print(view: budgets.BudgetView, *, as_json: bool) -> None:
    if as_json:
        output.document(output.whole(view))
        return
    when = f", {view.day} (UTC)" if view.day else ", each of its tasks"
    output.answer(f"{view.scope} {output.clean(view.label or view.name)}{when}")
    tokens, cost, tool_calls = _cells(view)
    extra = [f"{_amount(kind, getattr(view.extra, kind))} {_NAMES[kind]}" for kind in budgets.KINDS
             if getattr(view.extra, kind)]  # fmt: skip
    shared = [f"{_amount(kind, getattr(view.shared, kind))} {_NAMES[kind]}" for kind in budgets.KINDS
              if getattr(view.limit, kind) is not None]  # fmt: skip
    output.pairs(
        [
            ("tokens", tokens),
            ("cost", cost),
            ("tool calls", tool_calls),
            ("duration", "" if view.duration is None else units.show_duration(view.duration)),
            ("used as of", "" if view.as_of_ms is None else output.moment(view.as_of_ms)),
            ("at the limit", "calls are held" if view.on_exhausted == "park" else "calls are refused"),
            ("added for today", ", ".join(extra)),
            ("shared out to hosts", ", ".join(shared) if view.scope == "organization" else ""),
        ],
        indent=2,
    )
    for line in view.parked:
        output.answer(f"  parked: {output.clean(line)}")


def sentence(view: budgets.BudgetView) -> str:
    """What is limited, how much of it is used, and what happens at the limit."""
    limited = [kind for kind in budgets.KINDS if getattr(view.limit, kind) is not None]
    parts = [
        f"{_amount(kind, getattr(view.used, kind))} of {_amount(kind, getattr(view.limit, kind))} {_NAMES[kind]}"
        for kind in limited
    ]
    if view.duration is not None:
        parts.append(units.show_duration(view.duration))
    what = "calls are held" if view.on_exhausted == "park" else "calls are refused"
    return f"{', '.join(parts)}; then {what}" if parts else "no limit"


def _cells(view: budgets.BudgetView) -> tuple[str, str, str]:
    cells = []
    for kind in budgets.KINDS:
        limit, used = getattr(view.limit, kind), _amount(kind, getattr(view.used, kind))
        cells.append(f"{used} used, no limit" if limit is None else f"{used} of {_amount(kind, limit)} used")
    return cells[0], cells[1], cells[2]


def _amount(kind: str, amount: int) -> str:
    return budgets.show_money(amount) if kind == "cost_nano" else str(amount)

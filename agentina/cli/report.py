"""``agentina report``: what the fleet used, and what that cost."""

from __future__ import annotations

import csv
import datetime as dt
import sys
from typing import Final

import click

from agentina import errors
from agentina.cli import connection, lazy, options, output
from agentina.protocol import budgets

_HEADERS: Final = {
    "job": ("JOB", "NAME"), "agent": ("AGENT", "HOST"), "organization": ("ORGANIZATION", ""), "model": ("MODEL", ""),
    "day": ("DAY", ""),
}  # fmt: skip


@click.group(cls=lazy.NounGroup)
def report() -> None:
    """See what the fleet used, and what that cost."""


@report.command(
    epilog=options.examples(
        "agentina report usage", "agentina report usage --by model --since 2026-11-01 --until 2026-11-30",
        "agentina report usage --by job --csv > usage.csv",
    )
)  # fmt: skip
@click.option("--by", type=click.Choice(list(_HEADERS)), default="organization", show_default=True, help="Groups.")
@click.option("--since", metavar="DAY", help="First day (UTC), such as 2026-11-01; 30 days unless given.")
@click.option("--until", metavar="DAY", help="Last day (UTC), included; today unless given.")
@click.option("--organization", metavar="NAME", help="Only this organization.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Rows at most.")
@click.option("--csv", "as_csv", is_flag=True, help="As comma-separated values, money in nano-dollars.")
@options.root_option
@options.json_option
def usage(
    *, by: str, since: str | None, until: str | None, organization: str | None, limit: int, as_csv: bool, as_json: bool
) -> None:
    """Show calls of models, tokens and cost, as the gateways of the hosts counted them.

    Running tasks are counted as of a minute or two ago.
    """
    if as_csv and as_json:
        raise errors.USAGE(problem="Give one of --csv and --json.")
    query = {
        "by": by, "since": _check_day(since), "until": _check_day(until), "organization": organization, "limit": limit,
    }  # fmt: skip
    with connection.open_client() as client:
        found = client.get_usage(query)
    if as_json:
        output.document(output.whole(found))
    elif as_csv:
        _write_csv(found)
    else:
        _print(found)


def table(rows: list[budgets.UsageRow], *, headers: tuple[str, str], total: budgets.Amounts | None = None) -> None:
    """Print rows of usage, and a last one for all of them together."""
    lines = [(row.key, row.name, *_cells(row)) for row in rows]
    if total is not None:
        lines.append(("total", "", *_cells(total)))
    if not headers[1]:
        lines = [(line[0], *line[2:]) for line in lines]
    names = (*(name for name in headers if name), "CALLS", "INPUT", "CACHED", "CACHE WRITE", "OUTPUT", "TOOLS", "COST")
    output.table(names, lines)


def remarks(total: budgets.Amounts) -> list[str]:
    """What one should know of the figures."""
    found = []
    if total.unpriced:
        found.append(
            f"{total.unpriced} calls were of models without a price: what they cost is not known and not in the sum."
        )
    if total.estimated:
        found.append(f"{total.estimated} calls broke off and are counted by an upper estimate.")
    return found


def _print(found: budgets.UsageReport) -> None:
    output.answer(f"{found.since} to {found.until} (UTC)")
    table(found.rows, headers=_HEADERS[found.by], total=found.total)
    if found.is_cut:
        output.say("There are more rows: use --limit. The total has them all.")
    for remark in remarks(found.total):
        output.say(remark)


def _write_csv(found: budgets.UsageReport) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([found.by, "name", *budgets.FIGURES])
    for row in found.rows:
        # A cell that begins like this is a formula to spreadsheets.
        names = ["'" + text if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text for text in (row.key, row.name)]
        writer.writerow([*names, *(getattr(row, figure) for figure in budgets.FIGURES)])


def _cells(amounts: budgets.Amounts) -> tuple[object, ...]:
    cost = budgets.show_money(amounts.cost_nano)
    return (
        amounts.calls, amounts.input, amounts.cached, amounts.cache_write + amounts.cache_write_1h, amounts.output,
        amounts.tool_calls, f"{cost} + {amounts.unpriced} unpriced" if amounts.unpriced else cost,
    )  # fmt: skip


def _check_day(text: str | None) -> str | None:
    if text is not None:
        try:
            dt.date.fromisoformat(text)
        except ValueError as error:
            raise errors.USAGE(problem=f"Expected a day such as 2026-11-21, got {text[:40]!r}.") from error
    return text

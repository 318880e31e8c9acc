"""``agentina anomaly``: what is wrong in the fleet, until somebody resolves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from agentina.cli import acts, agent_names, connection, lazy, options, output
from agentina.protocol import anomalies, api, units

if TYPE_CHECKING:
    from agentina.client import api as clients

#: Reports that are shown with all their evidence.
_SHOWN: Final = 3
_STATES: Final = ("unresolved", *(state.value for state in anomalies.State), "all")


@click.group(cls=lazy.NounGroup)
def anomaly() -> None:
    """See what is wrong in the fleet, answer it, close it."""


@anomaly.command(
    "list",
    epilog=options.examples(
        "agentina anomaly list", "agentina anomaly list --kind complaint --json", "agentina anomaly list --job job_1"
    ),
)
@click.option("--state", type=click.Choice(_STATES), default="unresolved", show_default=True, help="Only those.")
@click.option("--kind", type=click.Choice(list(anomalies.KINDS)), help="Only of that kind.")
@click.option("--code", help="Only with that code.")
@click.option("--organization", help="Only of that organization.")
@click.option("--agent", metavar="AGENT", type=agent_names.AgentName(), help="Only those that happened on that agent.")
@click.option("--job", metavar="JOB", help="Only those that tasks of that job reported lately.")
@click.option("--limit", type=click.IntRange(1, 500), default=100, show_default=True, help="How many.")
@click.option("--after", help="The next page, as the end of the one before says.")
@options.root_option
@options.json_option
def list_anomalies(*, as_json: bool, **wanted: Any) -> None:
    """List anomalies; what happened last comes first."""
    if wanted["state"] == "all":
        del wanted["state"]
    with connection.open_client() as client:
        if wanted["agent"] is not None:
            wanted["agent"] = agent_names.resolve(client, wanted["agent"])
        page = client.list_anomalies(wanted)
    if as_json:
        output.document(page)
        return
    rows = [
        (one.id, one.state, one.kind, one.code, one.count, one.agents, output.moment(one.last_ms), one.summary)
        for one in page.anomalies
    ]
    headers = ("ID", "STATE", "KIND", "CODE", "TIMES", "AGENTS", "LAST", "SUMMARY")
    output.table(headers, rows, ends_in_prose=True)
    if page.next is not None:
        output.say(f"There is more: --after {page.next}")


@anomaly.command(epilog=options.examples("agentina anomaly show ano_1", "agentina anomaly show ano_1 --json"))
@click.argument("anomaly_id", metavar="ANOMALY")
@click.option("--all", "show_all", is_flag=True, help="Show all reports that are kept.")
@options.root_option
@options.json_option
def show(anomaly_id: str, *, show_all: bool, as_json: bool) -> None:
    """Show what happened, where, what shows it, and what to do about it."""
    with connection.open_client() as client:
        view = client.get_anomaly(anomaly_id)
    if as_json:
        output.document(view)
    else:
        _render(view, most=len(view.reports) if show_all else _SHOWN)


@anomaly.command(epilog=options.examples("agentina anomaly answer ano_1 'Use the mirror at /srv/pypi instead.'"))
@click.argument("anomaly_id", metavar="ANOMALY")
@click.argument("text")
@options.root_option
@options.json_option
def answer(anomaly_id: str, text: str, *, as_json: bool) -> None:
    """Say something to the tasks that reported it, those to come as well."""
    with connection.open_client() as client:
        view = client.answer_anomaly(anomaly_id, text)
    if as_json:
        output.document(view)
    else:
        output.answer(_state(view))


def _act(client: clients.Client, name: str, verb: str, *, reason: str) -> tuple[api.AnomalyView, str]:
    view = client.act_on_anomaly(name, verb, reason=reason)
    return view, _state(view)


_VERBS = {
    "acknowledge": ("Say that somebody looks after it.", "agentina anomaly acknowledge ano_1 --reason 'at work on it'"),
    "close": ("Say that it is resolved; should it happen again, it is open again.", "agentina anomaly close ano_1"),
    "reopen": ("Say that it is not resolved after all.", "agentina anomaly reopen ano_1"),
}
acts.add(anomaly, _act, _VERBS, metavar="ANOMALY")


def _state(view: api.AnomalyView) -> str:
    return f"{view.anomaly.id} is {output.paint(view.anomaly.state)}."


def _render(view: api.AnomalyView, *, most: int) -> None:
    one = view.anomaly
    output.answer(f"{one.id}  {output.paint(one.state)}  {one.code}")
    times = f"{units.show_count(one.count, 'time')} on {units.show_count(one.agents, 'agent')}"
    again = f", {one.reopened} times after it was closed" if one.reopened else ""
    changed = f"{output.moment(one.changed_ms)} by {one.changed_by}: {one.reason}" if one.changed_by else ""
    answered = f"{one.answer} ({one.answered_by}, {output.moment(one.answered_ms)})" if one.answer else ""
    output.pairs(
        [
            ("what", output.clean(one.summary)),
            ("kind", output.clean(f"{one.kind} ({anomalies.KINDS.get(one.kind, 'of a newer version')})")),
            ("happened", times + again),
            ("first", output.moment(one.first_ms)),
            ("last", output.moment(one.last_ms)),
            ("organization", output.clean(one.organization)),
            ("cause", output.clean(one.cause)),
            ("remedy", output.clean(one.remedy)),
            ("answer", output.clean(answered)),
            (one.state, output.clean(changed)),
        ],
        indent=2,
    )
    for report in view.reports[:most]:
        about = " ".join(part for part in (report.agent, report.task_id, report.release) if part)
        times = f" ({report.count} times)" if report.count > 1 else ""
        output.answer(f"report of {output.moment(report.at_ms)}  {output.clean(about or 'control plane')}{times}")
        output.pairs([(output.clean(name), output.clean(text)) for name, text in report.evidence.items()], indent=2)
    left = len(view.reports) - most
    if left > 0:
        output.say(f"{units.show_count(left, 'further report')}; --all shows them.")

"""``agentina organization``: tenants and their limits."""

from __future__ import annotations

from typing import Any

import click

from agentina import errors
from agentina.cli import connection, lazy, options, output
from agentina.client import api as api_client
from agentina.protocol import api, names


@click.group(cls=lazy.NounGroup)
def organization() -> None:
    """See and set a tenant's limits."""


@organization.command("list", epilog=options.examples("agentina organization list"))
@options.root_option
@options.json_option
def list_organizations(*, as_json: bool) -> None:
    """List organizations with their plans and limits."""
    with connection.open_client() as client:
        listed = client.list_organizations()
    if as_json:
        output.document(listed)
        return
    rows = [
        (
            one.name, one.plan, f"{one.agents}/{one.max_agents}", one.max_concurrent_tasks_per_agent, one.channel,
            f"{one.offline_grace_hours:g} h",
        )
        for one in listed.organizations
    ]  # fmt: skip
    output.table(("NAME", "PLAN", "AGENTS", "TASKS OF EACH", "CHANNEL", "OFFLINE GRACE"), rows)


@organization.command(epilog=options.examples("agentina organization show", "agentina organization show acme --json"))
@click.argument("name", default="default")
@options.root_option
@options.json_option
def show(name: str, *, as_json: bool) -> None:
    """Show an organization's plan and limits."""
    with connection.open_client() as client:
        _print(client.get_organization(names.check_organization(name)), as_json=as_json)


@organization.command("set", epilog=options.examples("agentina organization set acme --max-agents 50 --channel stable"))
@click.argument("name")
@click.option("--plan", help="Name of the plan.")
@click.option("--max-agents", type=click.IntRange(0, 1_000_000), help="Agents it may have.")
@click.option("--max-concurrent-tasks-per-agent", type=click.IntRange(1, 1000), help="Tasks at once on each.")
@click.option("--channel", type=click.Choice(["stable", "beta", "enterprise-lts", "dev"]), help="Releases it gets.")
@click.option("--offline-grace-hours", type=options.Number(0, 87_600), help="Hours its agents go on offline.")
@options.root_option
@options.json_option
def set_limits(name: str, *, as_json: bool, **wanted: Any) -> None:
    """Make an organization, or change its limits; what is not given stays as it is."""
    if all(value is None for value in wanted.values()):
        raise errors.USAGE(problem="Nothing to set: give at least one option.")
    update = api.OrganizationUpdate(**wanted)
    names.check_organization(name)
    with connection.open_client() as client:
        is_known = _is_known(client, name)
        view = client.set_organization(name, update)
    if not is_known:
        output.say(f"Organization {name} is new.")
    _print(view, as_json=as_json)


def _is_known(client: api_client.Client, name: str) -> bool:
    try:
        client.get_organization(name)
    except errors.AgentinaError as error:
        if error.entry is errors.NOT_FOUND:
            return False
        raise
    return True


def _print(view: api.OrganizationView, *, as_json: bool) -> None:
    if as_json:
        output.document(view)
        return
    output.answer(view.name)
    output.pairs(
        [
            ("plan", output.clean(view.plan)),
            ("agents", f"{view.agents} of {view.max_agents}"),
            ("tasks at once", f"{view.max_concurrent_tasks_per_agent} on each agent"),
            ("channel", view.channel),
            ("offline grace", f"{view.offline_grace_hours:g} h"),
        ],
        indent=2,
    )

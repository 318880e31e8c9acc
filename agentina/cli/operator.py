"""``agentina operator``: who may use the control plane."""

from __future__ import annotations

from typing import Any

import click

from agentina.cli import connection, lazy, options, output
from agentina.protocol import api, names


@click.group(cls=lazy.NounGroup)
def operator() -> None:
    """Say who may use the control plane; for administrators."""


@operator.command(
    epilog=options.examples(
        "agentina operator create alice",
        "agentina operator create grafana --role viewer > grafana.token",
    )
)
@click.argument("name")
@click.option(
    "--role", type=click.Choice(["viewer", "operator", "admin"]), default="operator", show_default=True,
    help="viewer: sees all, changes nothing; admin: manages operators and organizations too.",
)  # fmt: skip
@options.root_option
@options.json_option
def create(name: str, role: Any, *, as_json: bool) -> None:
    """Let somebody in; this is the only time the token is shown.

    stdout has the token and nothing else; whoever gets it runs `agentina login`.
    """
    wanted = api.OperatorCreate(name=names.check_operator(name), role=role)
    with connection.open_client() as client:
        _show(client.create_operator(wanted), as_json=as_json)


@operator.command("list", epilog=options.examples("agentina operator list", "agentina operator list --json"))
@options.root_option
@options.json_option
def list_operators(*, as_json: bool) -> None:
    """List operators with their roles, revoked ones too."""
    with connection.open_client() as client:
        listed = client.list_operators()
    if as_json:
        output.document(listed)
        return
    rows = [
        (
            one.name, one.role, one.state, output.moment(one.created_ms),
            "-" if one.revoked_ms is None else output.moment(one.revoked_ms),
        )
        for one in listed.operators
    ]  # fmt: skip
    output.table(("NAME", "ROLE", "STATE", "CREATED", "REVOKED"), rows)


@operator.command(epilog=options.examples("agentina operator renew alice > alice.token"))
@click.argument("name")
@options.root_option
@options.json_option
def renew(name: str, *, as_json: bool) -> None:
    """Give somebody another token, also who was revoked; the former token holds no longer."""
    with connection.open_client() as client:
        _show(client.renew_operator(name), as_json=as_json)


@operator.command(epilog=options.examples("agentina operator revoke alice"))
@click.argument("name")
@options.root_option
@options.json_option
def revoke(name: str, *, as_json: bool) -> None:
    """Take somebody's token away, at once."""
    with connection.open_client() as client:
        client.revoke_operator(name)
    if as_json:
        output.document({"name": name, "state": "revoked"})
    else:
        output.answer(f"Operator {output.clean(name)} is revoked.")


def _show(made: api.OperatorToken, *, as_json: bool) -> None:
    if as_json:
        output.document(made)
        return
    output.say(f"{made.name} is {made.role}; the token, shown this once:")
    output.answer(made.token)

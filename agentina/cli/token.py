"""``agentina token``: activation tokens, one for each agent."""

from __future__ import annotations

import click

from agentina.cli import connection, lazy, options, output
from agentina.protocol import api, names


@click.group(cls=lazy.NounGroup)
def token() -> None:
    """Make and manage activation tokens."""


@token.command(
    epilog=options.examples(
        "agentina token create --role coder --label zone=a",
        "agentina token create --expires 2h | agentina install --token-file - --control-plane https://agents.example.com",
    )
)
@click.option("--organization", default="default", show_default=True, help="Tenant the agent will belong to.")
@click.option("--role", help="Role the agent will have, whatever its host wishes.")
@options.label_option("Label the agent will have (repeatable).")
@click.option(
    "--expires",
    type=options.Duration(least=1, most=31_536_000),
    default="14d",
    show_default=True,
    help="How long it may be used.",
)
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many to make.")
@options.root_option
@options.json_option
def create(
    organization: str, role: str | None, label_pairs: tuple[str, ...], *, expires: float, count: int, as_json: bool
) -> None:
    """Make activation tokens; this is the only time their text is shown.

    stdout has one token a line and nothing else, so it can be piped into `agentina install --token-file -`.
    """
    wanted = api.TokenCreate(
        organization=names.check_organization(organization),
        role=None if role is None else names.check_role(role),
        labels=options.labels(label_pairs),
        expires_seconds=expires,
        count=count,
    )
    with connection.open_client() as client:
        created = client.create_tokens(wanted)
    if as_json:
        output.document(created)
        return
    for made in created.tokens:
        output.say(f"{made.id} expires {output.moment(made.expires_ms)}")
        output.answer(made.token)


@token.command("list", epilog=options.examples("agentina token list", "agentina token list --json"))
@options.root_option
@options.json_option
def list_tokens(*, as_json: bool) -> None:
    """List activation tokens with who used them."""
    with connection.open_client() as client:
        listed = client.list_tokens()
    if as_json:
        output.document(listed)
        return
    rows = [
        (
            made.id, made.state, made.organization, made.role or "-", output.labels(made.labels),
            output.moment(made.expires_ms), made.used_by or "-", made.refused or "-",
        )
        for made in listed.tokens
    ]  # fmt: skip
    output.table(("ID", "STATE", "ORGANIZATION", "ROLE", "LABELS", "EXPIRES", "USED BY", "REFUSED"), rows)


@token.command(epilog=options.examples("agentina token revoke tok_1"))
@click.argument("token_id", metavar="ID")
@options.root_option
@options.json_option
def revoke(token_id: str, *, as_json: bool) -> None:
    """Make an unused token worthless."""
    with connection.open_client() as client:
        client.revoke_token(token_id)
    if as_json:
        output.document({"id": token_id, "state": "revoked"})
    else:
        output.answer(f"Token {output.clean(token_id)} is revoked.")

"""``agentina login``: remember a control plane and an operator token."""

from __future__ import annotations

from pathlib import Path

import click

from agentina.cli import connection, options, output
from agentina.client import address, api


@click.command(
    epilog=options.examples(
        "agentina login https://agents.example.com",
        "agentina login https://agents.example.com --token-file - < token",
    )
)
@click.argument("control_plane", metavar="URL")
@click.option("--token-file", metavar="FILE", help="File with the operator token (aop_…); - reads stdin.")
@click.option("--ca-file", metavar="FILE", default="", help="Certificates to trust besides the system's (PEM).")
@options.root_option
@options.json_option
def login(control_plane: str, token_file: str | None, ca_file: str, *, as_json: bool) -> None:
    """Remember a control plane and an operator token.

    The token is asked for on the terminal, or read from a file or stdin; it is never taken from the command line, where
    every user of the machine could read it. It is checked before it is stored (readable by you alone).
    """
    url = str(address.parse(control_plane))
    token = _read_token(token_file)
    # Kept for commands in other directories.
    ca_file = str(Path(ca_file).absolute()) if ca_file else ""
    with api.Client(url, token=token, ca_file=ca_file) as client:
        who = client.whoami()
    path = connection.save_login(options.layout(), connection.Login(control_plane=url, token=token, ca_file=ca_file))
    if as_json:
        output.document({"control_plane": url, "operator": who.operator, "role": who.role, "file": str(path)})
    else:
        output.answer(f"Logged in to {url} as {output.clean(who.operator)} ({who.role}); stored in {path}.")


def _read_token(token_file: str | None) -> str:
    if token_file is not None:
        return connection.read_token(token_file, "--token-file")
    asked = options.ask_secret("Operator token", what="the token", instead="--token-file FILE, or - for stdin")
    return connection.check_token(asked.strip(), "the answer")

"""Commands that do something to one thing of the fleet, and may be told why: all verbs of this kind look alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import click

from agentina.cli import connection, options, output

if TYPE_CHECKING:
    from agentina.client import api as clients


class Act(Protocol):
    """What all verbs of a noun call."""

    def __call__(self, client: clients.Client, name: str, verb: str, /, *, reason: str) -> tuple[Any, str]:
        """Do ``verb`` to the thing of that name; what became of it, as a document and in words."""


def add(
    group: click.Group, act: Act, verbs: Mapping[str, tuple[str, str]], *, metavar: str, kind: Any = click.STRING
) -> None:
    """Add commands to a noun.

    Args:
        group: The noun.
        act: What all of them call.
        verbs: Their names, each with its line in the help and an example.
        metavar: What the help calls the thing.
        kind: How the thing is named (a type of click).

    """
    for verb, (summary, example) in verbs.items():
        command = click.command(verb, help=summary, epilog=options.examples(example))
        argument = click.argument("name", metavar=metavar, type=kind)
        group.add_command(command(argument(_reasoned(act, verb))))


def _reasoned(act: Act, verb: str) -> Callable[..., None]:
    @click.option("--reason", default="", help="Kept in the audit, and shown to others.")
    @options.root_option
    @options.json_option
    def run(name: str, reason: str, *, as_json: bool) -> None:
        with connection.open_client() as client:
            found, said = act(client, name, verb, reason=reason)
        if as_json:
            output.document(found)
        else:
            output.answer(said)

    return run

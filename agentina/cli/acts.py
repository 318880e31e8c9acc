"""Commands that do something to one thing of the fleet, and may be told why: all verbs of this kind look alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import click

from agentina.cli import options


class Act(Protocol):
    """What all verbs of a noun call."""

    def __call__(self, verb: str, name: str, reason: str, /, *, as_json: bool) -> None:
        """Do ``verb`` to the thing of that name, and print what became of it."""


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
        act(verb, name, reason, as_json=as_json)

    return run

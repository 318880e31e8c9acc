"""A command group that imports a command's module only when the command is used.

``agentina status`` runs on every login and in every monitoring script, so it must not pay for what ``agentina demo``
needs. Names and one-line descriptions stand in the tree; the modules hold the commands.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click


class Lazy(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    #: ``module:attribute`` of a click command.
    target: str
    #: One line for ``--help``; the same as the command's own first line (a test holds it).
    summary: str


class Section(NamedTuple):
    """A titled part of the list of commands."""

    title: str
    commands: Mapping[str, Lazy]


class LazyGroup(click.Group):
    """A group whose commands are loaded on first use, listed in sections, with near misses for a misspelt name."""

    def __init__(self, *args: Any, sections: Sequence[Section] = (), **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.sections = sections
        self._lazy = {name: lazy for section in sections for name, lazy in section.commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of the sections."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """The command, imported now."""
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return None
        module, _, attribute = lazy.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        if args and args[0] not in self._lazy and not args[0].startswith("-"):
            suggest(ctx, args[0], list(self._lazy))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """List the commands by section without importing any."""
        for section in self.sections:
            with formatter.section(section.title):
                formatter.write_dl([(name, lazy.summary) for name, lazy in section.commands.items()])


class NounGroup(click.Group):
    """The verbs of one noun, in the order they were declared."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names as declared."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """List the verbs, each with its whole first sentence."""
        lines = [(name, command.get_short_help_str(limit=200)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(lines)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one was probably meant."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            suggest(ctx, args[0], list(self.commands))
        return super().resolve_command(ctx, args)


def suggest(ctx: click.Context, found: str, known: list[str]) -> None:
    """Refuse an unknown command, with the nearest known one."""
    import difflib

    near = difflib.get_close_matches(found, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise click.UsageError(f"There is no command {found[:80]!r}.{hint}", ctx)

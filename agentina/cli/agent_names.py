"""Which agent a person means: by its id, by ``HOST/INSTANCE`` as tables show it, or by ``HOST`` where one agent is.

Ids are passed on as they are: only the control plane knows those of agents that it once had. Names are looked up among
the agents there are; nothing is guessed, because most commands change something.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import click
from click import shell_completion

from agentina import errors
from agentina.cli import connection, output
from agentina.client import api as api_client
from agentina.protocol import api

Function = TypeVar("Function", bound=Callable[..., object])

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Candidates named in an error, at the most.
_SHOWN: Final = 8
#: Seconds a shell waits for the control plane before it completes nothing.
_COMPLETION_SECONDS: Final = 2.0


class AgentName(click.ParamType):  # type: ignore[type-arg]  # only newer versions of click have it generic
    """An agent's id or name; shells complete it with the names of the fleet's agents. See :func:`resolve`."""

    name = "agent"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[shell_completion.CompletionItem]:
        """Names and ids that begin like ``incomplete``; none when the control plane does not say in time."""
        del param
        try:
            with ctx.scope(cleanup=False), connection.open_client(hurried_seconds=_COMPLETION_SECONDS) as client:
                agents = client.list_agents().agents
        except errors.AgentinaError:
            return []
        items = [(one.name, one.id) for one in agents] + ([(one.id, one.name) for one in agents if incomplete])
        return [
            shell_completion.CompletionItem(output.clean(value), help=output.clean(about))
            for value, about in items
            if value.startswith(incomplete)
        ]


def argument(function: Function) -> Function:
    """Add the argument AGENT as ``agent_name``."""
    return click.argument("agent_name", metavar="AGENT", type=AgentName())(function)


def resolve(client: api_client.Client, name: str) -> str:
    """The id of the agent that is called ``name``.

    Raises:
        AgentinaError: ``NOT_FOUND``, after saying which names are like it; ``AGENT_AMBIGUOUS`` with the candidates;
            what the client raises.

    """
    return name if _ID.fullmatch(name) else choose(client.list_agents().agents, name)


def choose(agents: Sequence[api.AgentView], name: str) -> str:
    """The id of the one of ``agents`` that is called ``name``; see :func:`resolve`."""
    found = [one for one in agents if name in {one.id, one.name}] or [one for one in agents if name == one.hostname]
    if len(found) == 1:
        return found[0].id
    if found:
        raise errors.AGENT_AMBIGUOUS(name=name[:80], count=len(found), candidates=_listed(found))
    import difflib

    # Of the hosts' names alone: most instances are called the same.
    hosts = difflib.get_close_matches(name.partition("/")[0], {one.hostname for one in agents}, n=_SHOWN)
    if near := [one for one in agents if one.hostname in hosts]:
        output.say(f"Agents with a name like it: {output.clean(_listed(near))}")
    raise errors.NOT_FOUND(what="agent", name=name[:80])


def _listed(agents: Sequence[api.AgentView]) -> str:
    shown = [f"{one.name} ({one.id})" for one in agents[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(agents) - _SHOWN} more" if len(agents) > _SHOWN else "")

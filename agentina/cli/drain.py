"""``agentina drain`` and ``agentina resume``: this host's own wish, kept over restarts."""

from __future__ import annotations

from typing import Any

import click

from agentina import errors
from agentina.cli import options, output
from agentina.client import local
from agentina.protocol import units


@click.command(epilog=options.examples("agentina drain --reason 'kernel update'", "agentina drain --checkpoint"))
@options.instance_option
@click.option("--reason", default="", help="Shown to whoever asks why this agent takes no work.")
@click.option(
    "--checkpoint", is_flag=True, help="End the tasks that can go on from a checkpoint; other agents go on with them."
)
@options.root_option
@options.json_option
def drain(instance: str, reason: str, *, checkpoint: bool, as_json: bool) -> None:
    """Take no new work; let running tasks finish, or go on elsewhere."""
    _report(_ask(instance, "drain", reason=reason, move=checkpoint), as_json=as_json)


@click.command(epilog=options.examples("agentina resume"))
@options.instance_option
@options.root_option
@options.json_option
def resume(instance: str, *, as_json: bool) -> None:
    """Take work again after a drain."""
    _report(_ask(instance, "resume"), as_json=as_json)


def _ask(instance: str, verb: str, *, reason: str = "", move: bool = False) -> dict[str, Any]:
    where = options.layout().instance(instance)
    try:
        return local.ask(where, verb, reason=reason, move=move)
    except errors.AgentinaError as error:
        if error.entry is errors.DAEMON_NOT_RUNNING and not where.config.exists():
            raise errors.INSTANCE_UNKNOWN(instance=instance, path=str(where.config)) from error
        raise


def _report(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.document(status)
        return
    tasks = units.show_count(len(status.get("tasks") or []), "task")
    reason = f": {output.clean(status['state_reason'])}" if status.get("state_reason") else ""
    output.answer(f"{status.get('instance')} is {output.paint(str(status.get('state')))}{reason}; {tasks} held.")

"""``agentina daemon``: the agent itself, in the foreground; what the systemd unit starts."""

from __future__ import annotations

import click

from agentina.cli import options


@click.command(epilog=options.examples("agentina daemon --instance default", "agentina daemon --root ~/agent"))
@options.instance_option
@options.root_option
def daemon(instance: str) -> int:
    """Run the agent of one instance in the foreground until SIGTERM; its tasks outlive it."""
    from agentina.host import daemon as host_daemon

    return host_daemon.run(options.layout().instance(instance))

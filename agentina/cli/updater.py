"""``agentina updater``: what agentina-update@.service starts."""

from __future__ import annotations

import click

from agentina.cli import options


@click.command(epilog=options.examples("agentina updater --instance default --soak 90s --patience 3m"))
@options.instance_option
@click.option("--soak", type=options.Duration(), default="90s", show_default=True, help="How long a trial lasts.")
@click.option(
    "--patience", type=options.Duration(), default="3m", show_default=True,
    help="How long a release may take until all that is asked of it holds.",
)  # fmt: skip
@options.root_option
def updater(instance: str, *, soak: float, patience: float) -> None:
    """Take the update of an instance as far as it goes.

    This is what agentina-update@.service starts, as root. People use `agentina upgrade` and `agentina rollback`.
    """
    import logging
    import sys

    from agentina.host.updating import trials
    from agentina.host.updating import updater as host_updater

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("tuf").setLevel(logging.WARNING)
    terms = trials.Terms(soak=soak, patience=patience)
    host_updater.run(options.layout().instance(instance), terms=terms)

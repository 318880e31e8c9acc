"""``agentina control-plane``: the server of a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agentina import errors
from agentina.cli import lazy, options, output


@click.group(cls=lazy.NounGroup)
def control_plane() -> None:
    """Run the control plane."""


@control_plane.command(
    epilog=options.examples(
        "agentina control-plane serve",
        "agentina control-plane serve --data /srv/agentina --listen 0.0.0.0:8440 --tls-cert cert.pem --tls-key key.pem",
    )
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Database, keys and blobs [/var/lib/agentina-control-plane]."
)
@click.option("--listen", default="127.0.0.1:8440", show_default=True, metavar="HOST:PORT", help="Port 0: a free one.")
@click.option("--tls-cert", type=click.Path(path_type=Path, exists=True), help="Certificate chain (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path, exists=True), help="Its key (PEM).")
@click.option("--token-file", type=click.Path(path_type=Path), help="Write the first operator token here too (0600).")
@click.option("--lease", type=options.Duration(), help="How long an agent may be silent before its tasks are given up.")
@click.option("--heartbeat", type=options.Duration(), help="Time between heartbeats of an agent without tasks.")
@options.root_option
def serve(data: Path | None, listen: str, *, tls_cert: Path | None, tls_key: Path | None, **wanted: Any) -> None:
    """Serve the control plane until SIGTERM.

    The first start makes everything it needs and prints an operator token, once: keep it, and use it with
    `agentina login`. Without a certificate it serves plain http, which agents accept for loopback only.
    """
    if (tls_cert is None) != (tls_key is None):
        raise errors.USAGE(problem="--tls-cert and --tls-key belong together.")
    try:
        from agentina.control import app, config
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("agentina"):
            raise
        how = "install the package agentina-control-plane, or pip install 'agentina[control-plane]'"
        problem = f"The library {error.name} is not here: {how}."
        raise errors.USAGE(problem=problem) from error
    given = {
        "token_file": wanted["token_file"],
        "lease_seconds": wanted["lease"],
        "heartbeat_seconds": wanted["heartbeat"],
    }
    settings = config.Settings(
        data=data or options.layout().root / "var/lib/agentina-control-plane",
        listen=listen,
        tls_certificate=tls_cert,
        tls_key=tls_key,
        **{key: value for key, value in given.items() if value is not None},
    )
    announcements = app.Announcements(
        address=lambda url: output.say(f"Listening on {url}"),
        operator_token=lambda token: _hand_over(token, settings.token_file),
    )
    try:
        app.serve(settings, announcements)
    except OSError as error:
        raise errors.INPUT_INVALID(where=f"--listen {listen}", problem=error.strerror or str(error)) from error


def _hand_over(token: str, file: Path | None) -> None:
    """The one time the first operator's token is shown: on stdout, unless a file has it."""
    if file is not None:
        output.say(f"The operator token is in {file}.")
        return
    output.say("The operator token, shown this once; keep it, and give it to `agentina login`:")
    output.answer(token)

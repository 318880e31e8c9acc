"""``agentina control-plane``: the server of a fleet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from agentina import errors
from agentina.cli import lazy, options, output


@click.group(cls=lazy.NounGroup)
def control_plane() -> None:
    """Run the control plane."""


_data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Database, keys and blobs [/var/lib/agentina-control-plane]."
)


@control_plane.command(
    epilog=options.examples(
        "agentina control-plane serve",
        "agentina control-plane serve --data /srv/agentina --listen 0.0.0.0:8440 --tls-cert cert.pem --tls-key key.pem",
    )
)
@_data_option
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
    with _libraries():
        from agentina.control import app, config
    given = {
        "token_file": wanted["token_file"],
        "lease_seconds": wanted["lease"],
        "heartbeat_seconds": wanted["heartbeat"],
    }
    settings = config.Settings(
        data=_place(data),
        listen=listen,
        tls_certificate=tls_cert,
        tls_key=tls_key,
        **{key: value for key, value in given.items() if value is not None},
    )
    announcements = app.Announcements(
        address=lambda url: output.say(f"Listening on {url}"),
        operator_token=lambda token: _hand_over(token, settings.token_file),
    )
    app.serve(settings, announcements)


@control_plane.command(
    epilog=options.examples(
        "sudo systemctl stop agentina-control-plane",
        "sudo -u agentina-control-plane agentina control-plane recover",
        "sudo systemctl start agentina-control-plane",
    )
)
@click.argument("name", default="admin")
@_data_option
@click.option("--token-file", type=click.Path(path_type=Path), help="Write the token here (0600) and not to stdout.")
@options.root_option
@options.json_option
def recover(name: str, *, data: Path | None, token_file: Path | None, as_json: bool) -> None:
    """Give an operator another token, without anybody's token.

    For when no administrator has one that holds; else `agentina operator renew` does it, and nothing has to be stopped.
    Run it on the control plane's machine, as its user, while it is stopped: agents wait, and their tasks go on.
    """
    with _libraries():
        from agentina.control import app, config
    made = app.renew_operator(config.Settings(data=_place(data), token_file=token_file), name)
    if as_json:
        output.document(made if token_file is None else msgspec.structs.replace(made, token=""))
    else:
        _hand_over(made.token, token_file)


@contextlib.contextmanager
def _libraries() -> Iterator[None]:
    """Say how to get what the control plane needs, where it is not here."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("agentina"):
            raise
        how = "install the package agentina-control-plane, or pip install 'agentina[control-plane]'"
        problem = f"The library {error.name} is not here: {how}."
        raise errors.USAGE(problem=problem) from error


def _place(data: Path | None) -> Path:
    return data or options.layout().root / "var/lib/agentina-control-plane"


def _hand_over(token: str, file: Path | None) -> None:
    """The one time an operator's token is shown: on stdout, unless a file has it."""
    if file is not None:
        output.say(f"The operator token is in {file}.")
        return
    output.say("The operator token, shown this once; keep it, and give it to `agentina login`:")
    output.answer(token)

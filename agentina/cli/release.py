"""``agentina release``: make, publish and take back releases, and see those of this host.

The acts on a repository's directory; the keys are :mod:`agentina.cli.release_keys`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentina import errors
from agentina.cli import lazy, options, output, release_keys
from agentina.protocol import names

if TYPE_CHECKING:
    from agentina.updates import repository as repositories

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group(cls=lazy.NounGroup)
def release() -> None:
    """Publish releases, and see what there is."""


release.add_command(release_keys.keys)


def _signing_options(function: Function) -> Function:
    """Add what every act on the offline metadata needs."""
    online = click.option(
        "--online-key", type=click.Path(path_type=Path, exists=True), metavar="FILE",
        help="Also sign snapshot and timestamp, where this key is at hand; else the control plane does.",
    )  # fmt: skip
    decorated: Function = function
    for add in (online, release_keys.passphrase_option, release_keys.key_option, release_keys.repository_option):
        decorated = add(decorated)
    return decorated


def _channel_option(name: str, help_text: str, *, required: bool = True) -> Callable[[Function], Function]:
    return click.option(name, type=click.Choice(names.CHANNELS), required=required, help=help_text)


@release.command(epilog=options.examples("agentina release build", "agentina release build --version 0.4.0"))
@click.option(
    "--source", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(), metavar="DIR",
    help="A checkout of agentina's sources [here].",
)  # fmt: skip
@click.option("--version", help="Call the release this [the sources' own].")
@click.option("--architecture", multiple=True, help="Only for this one; may be repeated.")
@options.root_option
@options.json_option
def build(*, source: Path, version: str | None, architecture: tuple[str, ...], as_json: bool) -> int:
    """Build release archives from sources and locked libraries; the same as `make release`."""
    import os
    import subprocess
    import sys

    if not (source / "packaging/releasing").is_dir():
        raise errors.USAGE(problem=f"{source.absolute()} is no checkout of agentina's sources; name one with --source.")
    if version is not None:
        from agentina.updates import versions

        versions.check(version)
    command = [sys.executable, "-B", "-m", "releasing", "release"]
    command += ["--version", version] if version else []
    command += [word for name in architecture for word in ("--architecture", name)]
    environment = {**os.environ, "PYTHONPATH": str((source / "packaging").absolute())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0 and as_json:
        output.document({"build": done.stdout.strip()})
    elif done.returncode == 0:
        output.answer(done.stdout.strip())
    return int(errors.Exit.OK if done.returncode == 0 else errors.Exit.FAILED)


@release.command(
    epilog=options.examples(
        "agentina release publish dist/0.4.0 --channel dev --repository /srv/releases --key targets.key",
    )
)
@click.argument("build", metavar="BUILD", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_channel_option("--channel", "Channel to add it to.")
@_signing_options
@options.root_option
@options.json_option
def publish(build: Path, *, channel: str, **given: Any) -> None:
    """Add a build (the directory that `make release` made) to a channel."""
    _act(given, lambda place, signers, now: place.publish(build, channel=channel, signers=signers, now=now))


@release.command(
    epilog=options.examples(
        "agentina release promote 0.4.0 --from beta --to stable --repository /srv/releases --key targets.key"
    )
)
@click.argument("version")
@_channel_option("--from", "Channel that has it.")
@_channel_option("--to", "Channel that shall have it too.")
@_signing_options
@options.root_option
@options.json_option
def promote(version: str, **given: Any) -> None:
    """Let another channel offer a release, the same files byte for byte."""
    source, target = given.pop("from"), given.pop("to")
    _act(
        given,
        lambda place, signers, now: place.promote(version, source=source, target=target, signers=signers, now=now),
    )


@release.command(
    epilog=options.examples(
        "agentina release withdraw 0.4.0 --reason 'leaks memory' --repository /srv/releases --key targets.key"
    )
)
@click.argument("version")
@_channel_option("--channel", "Only from this channel [from all].", required=False)
@click.option("--reason", required=True, metavar="TEXT", help="Why; shown to operators.")
@_signing_options
@options.root_option
@options.json_option
def withdraw(version: str, *, channel: str | None, reason: str, **given: Any) -> None:
    """Take a release back: it is offered no more, and cannot come back under that version.

    Hosts that run it keep it until they are told to install another.
    """
    _act(
        given,
        lambda place, signers, now: place.withdraw(version, channel=channel, reason=reason, signers=signers, now=now),
    )


@release.command(
    epilog=options.examples("agentina release renew --repository /srv/releases --key targets.key")
)  # fmt: skip
@click.option("--rotated", is_flag=True, help="After targets keys were replaced: take over what the old ones signed.")
@_signing_options
@options.root_option
@options.json_option
def renew(*, rotated: bool, **given: Any) -> None:
    """Sign what is published anew, before its year is over or after the keys were replaced."""
    _act(given, lambda place, signers, now: place.renew(signers=signers, now=now, rotated=rotated))


@release.command(
    epilog=options.examples("agentina release timestamp --repository /srv/releases --online-key online.key")
)  # fmt: skip
@release_keys.repository_option
@click.option(
    "--online-key", type=click.Path(path_type=Path, exists=True), required=True, metavar="FILE", help="The online key."
)
@options.root_option
@options.json_option
def timestamp(*, repository: Path, online_key: Path, as_json: bool) -> None:
    """Sign snapshot and timestamp where that is due: for a timer beside a static web server.

    A control plane does it by itself for the repository in its data directory.
    """
    changed = _sign_online(repository, online_key)
    if as_json:
        output.document({"changed": changed})
    else:
        output.answer("Signed snapshot and timestamp." if changed else "Nothing was due.")


@release.command(
    "list",
    epilog=options.examples("agentina release list", "agentina release list --repository /srv/releases --channel beta"),
)
@click.option(
    "--repository", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="What this repository offers, instead of what is on this host.",
)  # fmt: skip
@_channel_option("--channel", "Only this channel of the repository.", required=False)
@options.root_option
@options.json_option
def list_releases(*, repository: Path | None, channel: str | None, as_json: bool) -> None:
    """List the releases on this host, or what the channels of a repository offer."""
    if repository is not None:
        _list_offered(repository, channel, as_json=as_json)
    elif channel is not None:
        raise errors.USAGE(problem="--channel goes with --repository.")
    else:
        _list_installed(as_json=as_json)


def _list_installed(*, as_json: bool) -> None:
    from agentina.updates import releases

    store = releases.Store(options.layout().software_directory)
    linked, previous = store.bindings()
    rows = [
        {
            "version": version,
            "runs": sorted(name for name, bound in linked.items() if bound == version),
            "previous_of": sorted(name for name, bound in previous.items() if bound == version),
        }
        for version in store.installed()
    ]
    if as_json:
        output.document({"releases": rows})
        return
    if not rows:
        output.say(f"There is no release below {store.releases}.")
    output.table(
        ("VERSION", "RUN BY", "PREVIOUS OF"),
        [(row["version"], ",".join(row["runs"]) or "-", ",".join(row["previous_of"]) or "-") for row in rows],
    )


def _list_offered(repository: Path, channel: str | None, *, as_json: bool) -> None:
    import msgspec

    from agentina.updates import repository as repositories

    place = repositories.Repository(repository)
    documents = [place.channel(name) for name in ([channel] if channel else names.CHANNELS)]
    ends = {role: moment.isoformat() for role, moment in place.expiries().items()}
    if as_json:
        output.document({"channels": msgspec.to_builtins(documents), "expires": ends})
        return
    rows = [
        (document.channel, one.version, ",".join(sorted(one.archives)), one.built, one.title)
        for document in documents
        for one in document.releases
    ]
    rows += [
        (document.channel, one.version, "withdrawn", one.withdrawn, one.reason)
        for document in documents
        for one in document.withdrawn
    ]
    output.table(("CHANNEL", "VERSION", "FOR", "DATE", "TITLE"), rows, ends_in_prose=True)
    for role, moment in ends.items():
        output.say(f"{role} expires {moment}")


def _act(given: dict[str, Any], act: Callable[[repositories.Repository, list[Any], Any], repositories.Signed]) -> None:
    """Do an act on the offline metadata with the keys given, follow with the online ones, say what came of it."""
    from agentina.updates import repository as repositories

    signers = release_keys.load(given["key"], given["passphrase_file"])
    signed = act(repositories.Repository(given["repository"]), signers, release_keys.now())
    online = given["online_key"] is not None and not signed.missing and _sign_online(
        given["repository"], given["online_key"]
    )  # fmt: skip
    release_keys.tell(signed, as_json=given["as_json"], in_force=online)


def _sign_online(directory: Path, key: Path) -> bool:
    from agentina.updates import keyfiles
    from agentina.updates import repository as repositories

    if keyfiles.is_encrypted(key):
        raise errors.RELEASE_KEY_REFUSED(key=key.name, problem="the online key has to work without a passphrase")
    return repositories.Repository(directory).sign_online(keyfiles.load(key), now=release_keys.now())

"""``agentina release keys``: the keys of a release repository. The ceremony is docs/how-to/publish-releases.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentina import errors
from agentina.cli import lazy, options, output

if TYPE_CHECKING:
    from datetime import datetime

    from agentina.updates import ceremony, ed25519
    from agentina.updates import repository as repositories

Function = TypeVar("Function", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group(cls=lazy.NounGroup)
def keys() -> None:
    """Make keys, and say who may sign what."""


def repository_option(function: Function) -> Function:
    """Add ``--repository``."""
    return click.option(
        "--repository", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
        help="The repository's directory.",
    )(function)  # fmt: skip


def key_option(function: Function) -> Function:
    """Add ``--key``, repeatable."""
    return click.option("--key", type=_FILE, multiple=True, metavar="FILE", help="A private key; may be repeated.")(
        function
    )


def passphrase_option(function: Function) -> Function:
    """Add ``--passphrase-file``."""
    return click.option(
        "--passphrase-file", type=_FILE, metavar="FILE", help="Its first line is the passphrase of the keys [ask]."
    )(function)


@keys.command(
    epilog=options.examples(
        "agentina release keys create alice", "agentina release keys create online --no-passphrase"
    )
)  # fmt: skip
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(), metavar="DIR",
    help="Where to put it [here].",
)  # fmt: skip
@click.option("--no-passphrase", is_flag=True, help="Do not encrypt it: for the online key.")
@passphrase_option
@options.root_option
@options.json_option
def create(
    name: str, *, directory: Path, no_passphrase: bool, passphrase_file: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Make a key: NAME.key stays with its owner, NAME.pub is handed out."""
    from agentina.updates import keyfiles

    passphrase = None if no_passphrase else _passphrase(passphrase_file, f"Passphrase for {name}", confirm=True)
    private, public = keyfiles.create(directory, name, passphrase)
    if as_json:
        output.document({"private": str(private), "public": str(public)})
        return
    output.answer(f"{private}  keep it, and a copy of it elsewhere")
    output.answer(f"{public}  hand it to whoever drafts the root")


@keys.command(
    epilog=options.examples(
        "agentina release keys root --repository DIR --root-key alice.pub --root-key bob.pub --root-threshold 2 "
        "--targets-key carol.pub --online-key online.pub",
        "agentina release keys root --repository DIR --targets-key dave.pub --key alice.key",
        "agentina release keys root --repository DIR --key alice.key",
    )
)
@repository_option
@click.option("--root-key", type=_FILE, multiple=True, metavar="PUB", help="A key of the root role; may be repeated.")
@click.option("--root-threshold", type=click.IntRange(1, 16), metavar="N", help="Keys that a root needs.")
@click.option("--targets-key", type=_FILE, multiple=True, metavar="PUB", help="A key that publishes; may be repeated.")
@click.option("--targets-threshold", type=click.IntRange(1, 16), metavar="N", help="Keys that a publication needs.")
@click.option("--online-key", type=_FILE, multiple=True, metavar="PUB", help="Key of snapshot and timestamp.")
@click.option(
    "--lifetime", type=options.Duration(least=86_400), default="365d", show_default=True,
    help="Until the root expires; at least a day.",
)  # fmt: skip
@key_option
@passphrase_option
@options.root_option
@options.json_option
def root(*, repository: Path, lifetime: float, as_json: bool, **given: Any) -> None:
    """Draft the next root, or the first one. What is not given stays as it was.

    It comes into force when enough keys have signed it, those of the root before included.
    """
    import datetime as dt

    from agentina.updates import ceremony
    from agentina.updates import repository as repositories

    wanted = {
        "root": _wanted(given["root_key"], given["root_threshold"]),
        "targets": _wanted(given["targets_key"], given["targets_threshold"]),
        "online": _wanted(given["online_key"], None),
    }
    signed = ceremony.draft(
        repositories.Repository(repository), wanted=wanted, life=dt.timedelta(seconds=lifetime), now=now(),
        signers=load(given["key"], given["passphrase_file"]),
    )  # fmt: skip
    tell(signed, as_json=as_json)


@keys.command(epilog=options.examples("agentina release keys sign DIR/drafts/2.root.json --key bob.key"))
@click.argument("draft", type=_FILE)
@key_option
@passphrase_option
@options.root_option
@options.json_option
def sign(draft: Path, *, key: tuple[Path, ...], passphrase_file: Path | None, as_json: bool) -> None:
    """Sign a draft (a root or a publication); the last signature that it needs puts it in force."""
    from agentina.updates import repository as repositories

    if not key:
        raise errors.USAGE(problem="Name a private key with --key.")
    place = repositories.Repository(draft.absolute().parent.parent)
    tell(place.sign_draft(draft, load(key, passphrase_file)), as_json=as_json)


@keys.command("list", epilog=options.examples("agentina release keys list --repository /srv/releases"))
@repository_option
@options.root_option
@options.json_option
def list_keys(*, repository: Path, as_json: bool) -> None:
    """List who may sign what, and until when that holds."""
    import dataclasses

    from agentina.updates import ceremony
    from agentina.updates import repository as repositories

    place = repositories.Repository(repository)
    held = ceremony.holders(place)
    ends = place.expiries()
    if as_json:
        moments = {role: moment.isoformat() for role, moment in ends.items()}
        output.document({"roles": [dataclasses.asdict(one) for one in held], "expires": moments})
        return
    rows = [
        (one.role, f"{one.threshold} of {len(one.keys)}", ends[one.role].isoformat() if one.role in ends else "-", key)
        for one in held
        for key in one.keys
    ]
    output.table(("ROLE", "NEEDS", "EXPIRES", "KEY"), rows)


def load(files: tuple[Path, ...], passphrase_file: Path | None) -> list[ed25519.Signer]:
    """The private keys in ``files``, each asked for its passphrase where it has one."""
    from agentina.updates import keyfiles

    return [
        keyfiles.load(
            path, _passphrase(passphrase_file, f"Passphrase of {path.name}") if keyfiles.is_encrypted(path) else None
        )
        for path in files
    ]


def now() -> datetime:
    """The time of an act."""
    import datetime as dt

    from agentina.system import clock

    return dt.datetime.fromtimestamp(clock.SystemClock().wall_ms() / 1000, dt.UTC)


def tell(signed: repositories.Signed, *, as_json: bool, in_force: bool = False) -> None:
    """Say what became of metadata that was signed."""
    if as_json:
        output.document(
            {
                "role": signed.role, "version": signed.version, "path": str(signed.path),
                "missing_signatures": signed.missing,
            }
        )  # fmt: skip
        return
    name = f"{signed.role} {signed.version}"
    if signed.missing:
        output.answer(f"{name} is a draft and needs {signed.missing} more: agentina release keys sign {signed.path}")
    elif signed.role == "root" or in_force:
        output.answer(f"{name} is in force.")
    else:
        output.answer(f"{name} is signed; hosts see it once the online key has followed (the control plane does that).")


def _wanted(files: tuple[Path, ...], threshold: int | None) -> ceremony.Wanted:
    from agentina.updates import ceremony, keyfiles

    return ceremony.Wanted(keys=[keyfiles.load_public(path) for path in files] or None, threshold=threshold)


def _passphrase(file: Path | None, prompt: str, *, confirm: bool = False) -> str:
    if file is not None:
        from agentina.cli import connection

        return connection.read_secret(str(file), "--passphrase-file").partition("\n")[0]
    return options.ask_secret(prompt, what="the passphrase", instead="--passphrase-file FILE", confirm=confirm)

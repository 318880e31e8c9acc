"""``python -m agentina.updates.client``: the TUF client by itself, with the protocol of the TUF conformance suite.

See CLIENT-CLI.md of github.com/theupdateframework/tuf-conformance. It is the client that updates use, root and
directory given on the command line; administrators can try a repository with it. Exit code 0, or 1 for anything else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from agentina import errors
from agentina.updates import trust


class _Parser(argparse.ArgumentParser):
    """argparse with the protocol's one exit code for failure."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` with the usage and end."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.metadata_dir is None:
        parser.error("--metadata-dir is missing")
    try:
        if given.command == "init":
            trust.initialize(given.metadata_dir, given.trusted_root)
        elif given.command == "refresh":
            with _client(given) as client:
                client.refresh()
        else:
            _download(given)
    except errors.AgentinaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _client(given: argparse.Namespace) -> trust.Client:
    if given.metadata_url is None:
        raise errors.USAGE(problem=f"{given.command} needs --metadata-url.")
    return trust.Client(directory=given.metadata_dir, metadata_url=given.metadata_url, root=None)


def _download(given: argparse.Namespace) -> None:
    if not given.target_name or given.target_base_url is None or given.target_dir is None:
        raise errors.USAGE(problem="download needs --target-name, --target-base-url and --target-dir.")
    with _client(given) as client:
        for name in given.target_name:
            client.download(client.find(name), base_url=given.target_base_url, directory=given.target_dir)


def _parser() -> _Parser:
    parser = _Parser(prog="python -m agentina.updates.client", description="A client of TUF repositories.")
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="trust a root from now on")
    init.add_argument("trusted_root", type=Path, help="file with the root metadata")
    refresh = commands.add_parser("refresh", help="bring the metadata up to date")
    download = commands.add_parser("download", help="fetch targets and verify them")
    # Before or after the command, as callers like it. What the command's own parser does not see keeps the first value.
    for place in (parser, init, refresh, download):
        absent = None if place is parser else argparse.SUPPRESS
        place.add_argument("--metadata-dir", type=Path, default=absent, help="where trusted metadata is kept")
        place.add_argument("--metadata-url", default=absent, help="where the repository's metadata is")
        place.add_argument("--target-name", action="append", default=absent, help="path of a target; may be repeated")
        place.add_argument("--target-base-url", default=absent, help="where the repository's targets are")
        place.add_argument("--target-dir", type=Path, default=absent, help="where verified targets are put")
    return parser


if __name__ == "__main__":
    sys.exit(main())

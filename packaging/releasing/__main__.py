"""``python -m releasing``: what ``make deb`` and ``make lock`` run."""

from __future__ import annotations

import argparse
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from releasing import debian, tree, wheels

_SOURCE = Path(__file__).parents[2]
_LOCKS = _SOURCE / "packaging/locks"


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="releasing", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    deb = verbs.add_parser("deb", help="build the Debian packages")
    deb.add_argument("--architecture", choices=wheels.ARCHITECTURES, default=debian.native_architecture())
    deb.add_argument("--version", default=tree.version_of(_SOURCE), help="call the release this (PEP 440)")
    deb.add_argument("--output", type=Path, default=_SOURCE / "dist")
    verbs.add_parser("lock", help="write the lock files anew, with the newest libraries")
    chosen = parser.parse_args()
    if chosen.verb == "lock":
        _lock()
    else:
        _deb(chosen)


def _lock() -> None:
    project: dict[str, Any] = tomllib.loads((_SOURCE / "pyproject.toml").read_text("utf-8"))["project"]
    _LOCKS.mkdir(exist_ok=True)
    wheels.lock(project["dependencies"], _LOCKS / "host.txt")
    extra = project["optional-dependencies"]["control-plane"]
    wheels.lock(extra, _LOCKS / "control-plane.txt", rests_on=_LOCKS / "host.txt")


def _deb(chosen: argparse.Namespace) -> None:
    cache = _SOURCE / "build/wheels"
    job = debian.Job(
        source=_SOURCE,
        version=chosen.version,
        architecture=chosen.architecture,
        epoch=_source_date(),
        work=_SOURCE / "build/deb",
        output=chosen.output,
    )
    host = wheels.fetch(_LOCKS / "host.txt", chosen.architecture, cache)
    native = wheels.fetch(_LOCKS / "host.txt", debian.native_architecture(), cache)
    server = wheels.fetch(_LOCKS / "control-plane.txt", chosen.architecture, cache)
    for path in debian.build(job, host=host, native=native, server=server):
        print(path)  # noqa: T201 - the answer of this tool


def _source_date() -> int:
    """Seconds since 1970 of the sources: what every file of a package is dated with (reproducible-builds.org)."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return int(told)
    command = ["git", "-C", str(_SOURCE), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else int((_SOURCE / "CHANGELOG.md").stat().st_mtime)


main()

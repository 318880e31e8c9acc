"""``python -m releasing``: what ``make deb``, ``make release`` and ``make lock`` run."""

from __future__ import annotations

import argparse
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from releasing import archives, debian, tree, wheels

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
    release = verbs.add_parser("release", help="build archives to publish, with notes and bills of materials")
    release.add_argument(
        "--architecture", choices=wheels.ARCHITECTURES, action="append", help="only this one; may be repeated"
    )
    release.add_argument("--version", default=tree.version_of(_SOURCE), help="call the release this (PEP 440)")
    release.add_argument("--output", type=Path, default=_SOURCE / "dist")
    verbs.add_parser("lock", help="write the lock files anew, with the newest libraries")
    chosen = parser.parse_args()
    if chosen.verb == "lock":
        _lock()
    elif chosen.verb == "release":
        _release(chosen)
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


def _release(chosen: argparse.Namespace) -> None:
    job = archives.Job(
        source=_SOURCE,
        version=chosen.version,
        architectures=sorted(chosen.architecture or wheels.ARCHITECTURES),
        lock=_LOCKS / "host.txt",
        cache=_SOURCE / "build/wheels",
        epoch=_source_date(),
        output=chosen.output,
    )
    print(archives.build(job))  # noqa: T201 - the answer of this tool


def _source_date() -> int:
    """Seconds since 1970 of the sources: what every file of a package is dated with (reproducible-builds.org)."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return int(told)
    command = ["git", "-C", str(_SOURCE), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else int((_SOURCE / "CHANGELOG.md").stat().st_mtime)


main()

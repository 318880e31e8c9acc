"""Put the package's release where hosts run releases from; take away those that nobody needs any more.

The package brings its release in ``/usr/lib/agentina/release``, a path without a version, so the package manager
replaces it in place. A daemon must never see that: it loads modules while it runs. So every release that runs lives
below ``/opt/agentina/releases`` under its version, and the package's is put there as hard links, which cost nothing and
stay when an upgrade removes the package's names.

Byte code is compiled for this host's Python then, and again when the host gets another Python.

Every step may be interrupted and repeated: a release appears under its name all at once (rename(2)) when it is on disk
(sync(2)); what an interrupted run left begins with a dot, and is removed by the next.
"""

from __future__ import annotations

import compileall
import fcntl
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from agentina_base import directories, launcher

#: Releases kept besides those in use: what a person may want to go back to.
KEEP = 3


def main() -> None:
    """Stage, compile, clean up."""
    base, opt = Path(launcher.BASE), Path(launcher.OPT)
    release = stage(base / "release", opt / "releases")
    compile_release(release, base)
    clean(opt, packaged=release.name)


def clean(opt: Path, *, packaged: str) -> None:
    """Delete releases that nobody needs; none while an update is under way (agentina/updates/releases.py)."""
    descriptor = os.open(opt / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        needed = linked(opt / "instances") | linked(opt / "previous")
        for old in removable(opt / "releases", linked=needed, packaged=packaged, used=in_use(opt)):
            shutil.rmtree(opt / "releases" / old)
    except BlockingIOError:
        pass  # the updater cleans up when it is done
    finally:
        os.close(descriptor)


def stage(payload: Path, releases: Path) -> Path:
    """Make ``payload`` the release of its version below ``releases``; returns where it is.

    A release of the same version with other content (a package built again) is replaced.
    """
    version = (payload / "version").read_text("ascii").strip()
    assert launcher.is_version(version), version
    target = releases / version
    releases.mkdir(parents=True, exist_ok=True)
    for leftover in releases.glob(".*"):
        shutil.rmtree(leftover)
    if _digest(target) == _digest(payload):
        return target
    fresh, old = releases / f".new-{version}", releases / f".old-{version}"
    _copy(payload, fresh)
    os.sync()
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    directories.sync(releases)
    if old.exists():
        shutil.rmtree(old)
    return target


def compile_release(release: Path, base: Path) -> None:
    """Write byte code for this Python. A file that does not compile is the importer's to complain about."""
    for directory in (release / "lib", release / f"lib-{launcher.python_tag()}", base / "agentina_base"):
        if directory.is_dir():
            compileall.compile_dir(directory, quiet=2)


def removable(releases: Path, *, linked: Collection[str], packaged: str, used: Collection[str]) -> list[str]:
    """Names of the releases that may go: neither linked, nor the package's, nor running, nor among the newest few."""
    names = [path.name for path in releases.iterdir() if launcher.is_version(path.name)]
    names.sort(key=launcher.version_key, reverse=True)
    return [name for name in names[KEEP:] if name not in linked and name not in used and name != packaged]


def linked(instances: Path) -> set[str]:
    """Names of the releases that instances are bound to."""
    if not instances.is_dir():
        return set()
    return {path.readlink().name for path in instances.iterdir() if path.is_symlink()}


def in_use(opt: Path, proc: Path = Path("/proc")) -> set[str]:
    """Names of the releases that a process has a library of in its memory (proc(5), maps)."""
    marker = f" {opt}/releases/"
    found = set()
    for maps in proc.glob("[0-9]*/maps"):
        try:
            text = maps.read_text("utf-8", "replace")
        except OSError:
            continue  # it ended meanwhile
        found |= {part.split("/", 1)[0] for part in text.split(marker)[1:]}
    return found


def _digest(release: Path) -> str | None:
    try:
        return (release / "digest").read_text("ascii")
    except FileNotFoundError:
        return None


def _copy(source: Path, target: Path) -> None:
    """Copy a tree as hard links, or as files where /usr and /opt are different file systems."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(source, target, copy_function=link)

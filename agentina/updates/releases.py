"""Releases on this host's disk: unpacked with care, linked to instances, and taken away when nobody needs them.

::

    <root>/releases/<version>/      what runs; never changed once it has its name
    <root>/instances/<instance>     -> ../releases/<version>   which release an instance runs
    <root>/previous/<instance>      -> ../releases/<version>   what it ran before, to go back to
    <root>/trials/<instance>        -> ../releases/<version>   what it has on trial; a journal keeps it from clean-up
    <root>/incoming/                being unpacked, being deleted; nothing in it counts
    <root>/lock                     one process changes all this at a time

Everything is root's; nothing the daemon's user can write is looked at. A release gets its name by one rename when all
its files are on disk, and links move by one rename as well, so a power cut leaves the old or the new.

What can go wrong, and what follows:

=====================================================  =================================================================
archive with links, devices, ``..``, two of a name,      ``RELEASE_UNSUITABLE``; only ``incoming`` was touched
too many or too large files, another version in it
another architecture, no support for this Python         ``RELEASE_UNSUITABLE``
no room                                                  ``DISK_FULL``, before anything is unpacked where it can be told
power cut or kill while unpacking or deleting            what lies in ``incoming`` is deleted by the next :meth:`unpack`
files changed or lost later                              :meth:`check` finds it (``RELEASE_UNSUITABLE``)
a link that is no link to a release                      clean-up deletes nothing at all
/proc cannot be read                                     clean-up deletes nothing at all
=====================================================  =================================================================

Clean-up keeps, whatever its age: a release that is linked, previous, the package's own, used by a process, pinned by a
live task, under way in a journal, or not understood; and the newest :data:`KEEP`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
import sys
import tarfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from agentina import errors
from agentina.protocol import names
from agentina.system import files
from agentina.updates import versions

#: Newest releases kept in any case.
KEEP: Final = 3
#: Bounds of an archive's content.
MAX_FILES: Final = 20_000
MAX_BYTES: Final = 1 << 30
_MAX_DEPTH: Final = 16
_MAX_SMALL_FILE: Final = 1 << 20
#: Bytes that stay free on the disk of releases, for journals and logs.
_RESERVE: Final = 64 << 20
_PIECE: Final = 1 << 20
#: Seconds between tries to get the lock.
_LOOK_AGAIN: Final = 0.1
#: Files that describe a release and are no part of its digest (packaging/releasing/tree.py).
_DESCRIPTIONS: Final = {"version", "digest", "release.json"}


class About(msgspec.Struct, frozen=True, kw_only=True):
    """A release's own ``release.json``."""

    version: str
    #: SHA-256 over names and contents of its files.
    digest: str
    #: Debian's name.
    architecture: str
    #: Interpreters it has compiled libraries for, such as ``cp311``.
    pythons: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What clean-up does with one entry of the releases' directory."""

    name: str
    #: Why it stays; empty: it goes.
    kept_for: str


class Store:
    """The releases below one directory, ``/opt/agentina`` on a host."""

    def __init__(self, root: Path, *, proc: Path = Path("/proc")) -> None:
        self.root = root
        self.releases = root / "releases"
        self.incoming = root / "incoming"
        self._instances = root / "instances"
        self._previous = root / "previous"
        self._trials = root / "trials"
        self._proc = proc

    @contextlib.contextmanager
    def alone(self, *, patience_seconds: float = 0.0) -> Iterator[None]:
        """Exclude everybody else who changes releases or links, having waited for them for a while.

        Raises:
            AgentinaError: ``STATE_CONFLICT``.

        """
        _ensure(self.root)
        deadline = time.monotonic() + patience_seconds
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(files.exclusive_lock(self.root / "lock"))
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise errors.STATE_CONFLICT(
                            what="The set of releases on this host", state="being changed by another process",
                            expected="one update at a time",
                        ) from error  # fmt: skip
                time.sleep(_LOOK_AGAIN)  # a lock of another process
            yield

    # --- what there is -----------------------------------------------------------------------------------------------

    def installed(self) -> list[str]:
        """Versions of the releases that are complete, the newest first."""
        found = [name for name in self._entries() if versions.is_valid(name) and self._about(name) is not None]
        return sorted(found, key=versions.order, reverse=True)

    def path(self, version: str) -> Path:
        """Where a release is, or would be."""
        return self.releases / versions.check(version)

    def check(self, version: str, *, architecture: str, python: str | None = None) -> About:
        """Make sure that a release is whole and made for this host.

        Args:
            version: Which.
            architecture: Debian's name of this machine's.
            python: The interpreter that is to run it, such as ``cp311``; None: this one.

        Raises:
            AgentinaError: ``RELEASE_UNKNOWN``, ``RELEASE_UNSUITABLE``.

        """
        path = self.path(version)
        if not path.is_dir():
            raise errors.RELEASE_UNKNOWN(what=f"release {version}", where=str(self.releases))
        return _check(path, version, architecture, python or python_tag())

    # --- unpacking ---------------------------------------------------------------------------------------------------

    def unpack(self, archive: Path, version: str, *, architecture: str, python: str | None = None) -> Path:
        """Make the release in a verified archive available under its version. Safe to repeat.

        A release of that version that is there already stays if it is whole; if not, it is replaced, unless it is
        linked, for somebody may run it.

        Args:
            archive: The file, whose hash was compared with signed metadata.
            version: What it must be.
            architecture: Debian's name of this machine's.
            python: The interpreter that is to run it; None: this one.

        Raises:
            AgentinaError: ``RELEASE_UNSUITABLE``, ``DISK_FULL``, ``STATE_UNWRITABLE``, ``STATE_CONFLICT``.

        """
        target, python = self.path(version), python or python_tag()
        if target.exists():
            with contextlib.suppress(errors.AgentinaError):
                _check(target, version, architecture, python)
                return target
            if any(version in bound.values() for bound in self.bindings()):
                raise errors.STATE_CONFLICT(
                    what=f"Release {version}", state="damaged and linked to an instance",
                    expected="a rollback to another one first",
                )  # fmt: skip
        self._sweep()
        fresh = self.incoming / f"new-{version}-{secrets.token_hex(4)}"
        try:
            _ensure(self.releases)
            _ensure(self.incoming)
            _extract(archive, fresh, version)
            _check(fresh, version, architecture, python)
            files.sync_tree(fresh)
            if target.exists():
                self._discard(target)
            fresh.replace(target)
            files.sync_directory(self.releases)
        except OSError as error:
            raise files.from_os_error(error, self.root) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target

    def _sweep(self) -> None:
        """Delete what interrupted work left."""
        if self.incoming.is_dir():
            for path in self.incoming.iterdir():
                shutil.rmtree(path, ignore_errors=True)

    def _discard(self, path: Path) -> None:
        """Delete a release: its name goes at once, its files after that."""
        _ensure(self.incoming)
        doomed = self.incoming / f"old-{path.name}-{secrets.token_hex(4)}"
        path.replace(doomed)
        files.sync_directory(self.releases)
        shutil.rmtree(doomed, ignore_errors=True)

    # --- links -------------------------------------------------------------------------------------------------------

    def linked(self, instance: str) -> str | None:
        """The release that an instance is bound to; None: the package's. Raises like :meth:`plan`."""
        return self._links(self._instances, instance).get(instance)

    def previous(self, instance: str) -> str | None:
        """The release that an instance ran before. Raises like :meth:`linked`."""
        return self._links(self._previous, instance).get(instance)

    def bindings(self) -> tuple[dict[str, str], dict[str, str]]:
        """By instance, the releases in force and those before. Raises like :meth:`plan`."""
        return self._links(self._instances), self._links(self._previous)

    def link(self, instance: str, version: str | None) -> None:
        """Bind an instance to a release, or with None to the package's. Durable; safe to repeat."""
        self._move(self._instances / names.check_instance(instance), version)

    def link_previous(self, instance: str, version: str | None) -> None:
        """Remember what an instance ran before, or with None forget it. Durable; safe to repeat."""
        self._move(self._previous / names.check_instance(instance), version)

    def link_trial(self, instance: str, version: str | None) -> None:
        """Name the release that an instance has on trial, or with None none. Durable; safe to repeat."""
        self._move(self._trials / names.check_instance(instance), version)

    def _move(self, link: Path, version: str | None) -> None:
        temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
        try:
            _ensure(link.parent)
            if version is None:
                link.unlink(missing_ok=True)
            else:
                temporary.symlink_to(f"../releases/{versions.check(version)}")
                temporary.replace(link)
            files.sync_directory(link.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise files.from_os_error(error, link) from error

    def _links(self, directory: Path, instance: str | None = None) -> dict[str, str]:
        """Instances and the versions they are bound to."""
        found = {}
        try:
            entries = sorted(path.name for path in directory.iterdir())
        except FileNotFoundError:
            return {}
        for name in entries:
            # A link's temporary name, left by a power cut, binds nobody.
            if name.startswith(".") or instance not in {None, name}:
                continue
            found[name] = _version_of_link(directory / name)
        return found

    # --- clean-up ----------------------------------------------------------------------------------------------------

    def clean(self, *, packaged: str | None, busy: Collection[str] = (), pinned: Collection[str] = ()) -> list[Fate]:
        """Delete the releases that nobody needs. The caller holds :meth:`alone`. Returns what became of each."""
        fates = self.plan(packaged=packaged, busy=busy, pinned=pinned)
        for fate in fates:
            if not fate.kept_for:
                try:
                    self._discard(self.releases / fate.name)
                except OSError as error:
                    raise files.from_os_error(error, self.releases) from error
        self._sweep()
        return fates

    def plan(self, *, packaged: str | None, busy: Collection[str] = (), pinned: Collection[str] = ()) -> list[Fate]:
        """What :meth:`clean` would do.

        Args:
            packaged: The package's own version.
            busy: Versions that a journal is about.
            pinned: Versions that live tasks depend on.

        Raises:
            AgentinaError: ``STATE_CONFLICT``: a link is not understood, or what runs cannot be told; nothing may go.

        """
        entries = self._entries()
        linked, previous = self.bindings()
        return fates(
            entries,
            understood=[name for name in entries if versions.is_valid(name) and self._about(name) is not None],
            reasons={
                "linked": linked.values(),
                "previous": previous.values(),
                "the package's own": [packaged] if packaged else [],
                "running": self.running(),
                "under way": busy,
                "pinned by a task": pinned,
            },
        )

    def running(self) -> set[str]:
        """Versions that some process uses: has files of in its memory or open, or stands in.

        Raises:
            AgentinaError: ``STATE_CONFLICT`` when that cannot be told of some process.

        """
        marker = f"{self.releases}/"
        found = set()
        for process in self._proc.glob("[0-9]*"):
            for text in _places(process):
                before, _, rest = text.partition(marker)
                if not before and rest:
                    found.add(rest.split("/", 1)[0])
        return found

    def _entries(self) -> list[str]:
        try:
            return sorted(path.name for path in self.releases.iterdir())
        except FileNotFoundError:
            return []

    def _about(self, name: str) -> About | None:
        """A release's description, when it is a directory that describes itself as what it is called."""
        with contextlib.suppress(errors.AgentinaError):
            about = _read_about(self.releases / name)
            return about if about.version == name and not (self.releases / name).is_symlink() else None
        return None


def fates(
    entries: Collection[str], *, understood: Collection[str], reasons: dict[str, Collection[str]]
) -> list[Fate]:  # fmt: skip
    """Decide what goes. Pure.

    Args:
        entries: Names in the releases' directory.
        understood: Those of them that are complete releases.
        reasons: By reason, the names that stay for it.

    Returns:
        One fate an entry, in their order.

    """
    newest = sorted(understood, key=versions.order, reverse=True)[:KEEP]
    known = {**reasons, f"one of the newest {KEEP}": newest}

    def kept_for(name: str) -> str:
        if name not in understood:
            return "not understood"
        return next((reason for reason, kept in known.items() if name in kept), "")

    return [Fate(name=name, kept_for=kept_for(name)) for name in entries]


def python_tag() -> str:
    """The running interpreter as wheels name it, such as ``cp311``."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def digest_of(path: Path) -> str:
    """SHA-256 over names and contents of a release's files, as packaging/releasing/tree.py computes it.

    Byte code was compiled on this host and is left out.
    """
    total = hashlib.sha256()
    chosen = sorted(each for each in path.rglob("*") if each.is_file() and _counts(each.relative_to(path)))
    for each in chosen:
        with each.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{content}  {each.relative_to(path)}\n".encode())
    return total.hexdigest()


def _counts(relative: Path) -> bool:
    return str(relative) not in _DESCRIPTIONS and relative.parent.name != "__pycache__"


def _check(path: Path, version: str, architecture: str, python: str) -> About:
    about = _read_about(path)
    problem = ""
    if about.version != version:
        problem = f"it is {about.version[:40]!r} inside"
    elif about.architecture != architecture:
        problem = f"it is made for {about.architecture[:40]!r}, this is {architecture}"
    elif python not in about.pythons:
        problem = f"it supports {', '.join(about.pythons)[:100]}, this host's Python is {python}"
    elif digest_of(path) != about.digest:
        problem = "files were changed or are missing"
    if problem:
        raise errors.RELEASE_UNSUITABLE(version=version, problem=problem)
    return about


def _read_about(path: Path) -> About:
    try:
        return msgspec.json.decode(files.read_bounded(path / "release.json", limit=_MAX_SMALL_FILE), type=About)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.RELEASE_UNSUITABLE(version=path.name, problem="it does not say what it is") from error


def _version_of_link(link: Path) -> str:
    """The version a link names; anything but a link to a release is somebody's work that is not understood."""
    try:
        text = str(link.readlink())
    except OSError:
        text = ""
    version = text.removeprefix("../releases/")
    if f"../releases/{version}" != text or not versions.is_valid(version):
        raise errors.STATE_CONFLICT(
            what=str(link), state=f"{text[:100]!r}" if text else "no link", expected="a link to ../releases/VERSION"
        )
    return version


def _places(process: Path) -> Iterator[str]:
    """Paths that a process uses (proc(5)); nothing when it ended."""
    try:
        for line in (process / "maps").read_text("utf-8", "surrogateescape").splitlines():
            # address perms offset dev inode path
            yield line.split(None, 5)[5] if line.count(" ") >= 5 and "/" in line else ""  # noqa: PLR2004 - columns
        for link in (process / "cwd", process / "exe", *(process / "fd").iterdir()):
            yield str(_target(link))
    except (FileNotFoundError, ProcessLookupError):
        return
    except OSError as error:
        raise errors.STATE_CONFLICT(
            what=f"What process {process.name} uses", state=f"not to be told ({error.strerror})",
            expected="the rights to read /proc (CAP_SYS_PTRACE)",
        ) from error  # fmt: skip


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except (FileNotFoundError, ProcessLookupError):
        return ""  # a descriptor that was closed, or a kernel thread, which has no program


# --- extraction ------------------------------------------------------------------------------------------------------


def _extract(archive: Path, target: Path, version: str) -> None:
    """Unpack below ``target`` what the archive has below ``version/``: plain files and directories, nothing else."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            entries = list(_entries_of(tar, version))
            _check_room(target.parent, sum(entry.size for _, entry in entries))
        target.mkdir(mode=0o755)
        with tarfile.open(archive, "r:gz") as tar:
            for relative, entry in _entries_of(tar, version):
                _place(tar, entry, target.joinpath(*relative))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise errors.RELEASE_UNSUITABLE(version=version, problem=f"its archive is damaged ({error})") from error


def _entries_of(tar: tarfile.TarFile, version: str) -> Iterator[tuple[tuple[str, ...], tarfile.TarInfo]]:
    """The entries below the one directory, each with the parts of its name; bounded and without surprises."""
    seen, total = set(), 0
    for number, entry in enumerate(tar):
        parts = tuple(entry.name.split("/"))
        total += entry.size
        if number >= MAX_FILES or total > MAX_BYTES:
            raise _bad(version, f"more than {MAX_FILES} files or {MAX_BYTES} bytes")
        if not (entry.isreg() or entry.isdir()):
            raise _bad(version, f"{entry.name[:80]!r} is neither a file nor a directory")
        if parts[0] != version or {"", ".", ".."} & {*parts} or len(parts) > _MAX_DEPTH or not entry.name.isprintable():
            raise _bad(version, f"{entry.name[:80]!r} is no name below {version}/")
        if parts in seen:
            raise _bad(version, f"{entry.name[:80]!r} is in it twice")
        seen.add(parts)
        if len(parts) > 1:
            yield parts[1:], entry


def _place(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    if entry.isdir():
        path.mkdir(mode=0o755, exist_ok=True)
        path.chmod(0o755)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    source = tar.extractfile(entry)
    assert source is not None  # it is a file
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        _copy(source, file, entry.size)
        # The umask is the caller's; owners and modes of the archive are nobody's business here.
        os.fchmod(file.fileno(), 0o644)


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise EOFError("it ends too early")
        target.write(piece)
        left -= len(piece)


def _check_room(directory: Path, size: int) -> None:
    if shutil.disk_usage(directory).free < size + _RESERVE:
        raise errors.DISK_FULL(path=str(directory))


def _ensure(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)


def _bad(version: str, problem: str) -> errors.AgentinaError:
    return errors.RELEASE_UNSUITABLE(version=version, problem=f"its archive has {problem}")

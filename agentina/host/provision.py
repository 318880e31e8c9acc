"""Puts copies of AI agents' command lines on this host, and takes them away (agentina/runners/copies.py).

A copy is made beside its place, on disk to the last file, and then renamed to it, so that it is there whole or not at
all; what an interrupted installation left is swept by the next. Whatever is made is root's (or whose the root
directory is), read-only, and has nothing but plain files and directories.

| installed | asked for | what happens |
| --- | --- | --- |
| nothing | any | it is made |
| the version, with the same hash | the same | nothing; it becomes the default where that was asked for |
| the version, with another hash | the same version | refused: versions never change |
| more than are kept | any | the oldest are removed that are neither the default nor a live task's |
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import re
import secrets
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec

from agentina import errors
from agentina.host.work import choices
from agentina.protocol import names
from agentina.runners import contract, copies, registry
from agentina.system import clock, files, paths, users

#: Copies of one runner that stay without being needed, the newest.
KEEP: Final = 3
#: Bounds of what is installed: four times what the largest has today.
MAX_FILES: Final = 100_000
MAX_BYTES: Final = 4 << 30
_MAX_DEPTH: Final = 40
#: Bytes of free disk that stay.
_RESERVE: Final = 256 << 20
_PIECE: Final = 1 << 20
#: Seconds that a program may take to say its version.
_PATIENCE: Final = 60.0
_VERSION: Final = re.compile(r"\d+\.\d+[0-9A-Za-z.+-]*")
#: What reading an archive ends with that is none, was cut off, or is packed in a way that is not understood; one that
#: wants a password is a RuntimeError, of which NotImplementedError is one.
_DAMAGES: Final = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError,
)  # fmt: skip
#: Beginnings of programs, whatever permissions an archive gives them: ELF, and scripts.
_PROGRAMS: Final = (b"\x7fELF", b"#!")


class Wish(NamedTuple):
    """What to install."""

    runner: str
    source: Path
    #: Empty: what the program says.
    version: str = ""
    #: Path of the program in the source; empty: the only file of the runner's usual name.
    program: str = ""
    #: What the source must have; empty: anything.
    sha256: str = ""
    is_default: bool = True


class Item(NamedTuple):
    """A file to copy."""

    parts: tuple[str, ...]
    open: Callable[[], IO[bytes]]
    is_executable: bool


class Store:
    """The copies of one host."""

    def __init__(self, layout: paths.Layout) -> None:
        self._layout = layout
        self._root = layout.copies_directory

    # --- verbs -------------------------------------------------------------------------------------------------------

    def install(self, wish: Wish) -> tuple[copies.Found, bool]:
        """Make a copy; returns it, and whether it was made now.

        Raises:
            AgentinaError: ``RUNNER_COPY_UNSUITABLE``, ``NAME_INVALID``, ``FILE_UNREADABLE``, ``DISK_FULL``,
                ``STATE_UNWRITABLE``, ``STATE_CONFLICT``.

        """
        names.check_runner(wish.runner)
        source_hash = _check_source(wish)
        with self._alone():
            fresh = self._root / f".new-{secrets.token_hex(4)}"
            try:
                fresh.mkdir(mode=0o755)
                _copy_all(wish, fresh)
                program = _find_program(fresh, wish)
                (fresh / program).chmod(0o555)
                version = _find_version(wish, _ask_version(fresh / program, is_careful=self._layout.is_system))
                made = copies.Copy(
                    runner=wish.runner, version=version, program=program, sha256=digest_of(fresh),
                    source=str(wish.source)[-1024:], source_sha256=source_hash,
                    installed_ms=clock.SystemClock().wall_ms(),
                )  # fmt: skip
                found, is_new = self._place(fresh, made)
            except OSError as error:
                raise files.from_os_error(error, self._root) from error
            finally:
                self._sweep()
            if wish.is_default:
                self._make_default(found)
            self._clean(wish.runner)
            return copies.check(found.path), is_new

    def use(self, runner: str, version: str) -> copies.Found:
        """Make a version the default.

        Raises:
            AgentinaError: ``RUNNER_MISSING``, ``RUNNER_COPY_DAMAGED``, and as for :meth:`install`.

        """
        with self._alone():
            self._make_default(copies.check(self._path(runner, version)))
        return copies.check(self._path(runner, version))

    def remove(self, runner: str, version: str) -> None:
        """Take a copy away, damaged or not.

        Raises:
            AgentinaError: ``RUNNER_MISSING``; ``RUNNER_COPY_BUSY``: a live task has it, or it is the default and not
                the last one; and as for :meth:`install`.

        """
        path = self._path(runner, version)
        with self._alone():
            others = [each for each in self._versions(runner) if each != path]
            if others and copies.default(path.parent) == version:
                raise errors.RUNNER_COPY_BUSY(name=f"{runner}@{version}", why="it is the default")
            tasks = self._take(path)
            if tasks:
                why = f"a task that has not ended has it ({', '.join(tasks[:3])})"
                raise errors.RUNNER_COPY_BUSY(name=f"{runner}@{version}", why=why)
            if not others:
                files.remove_tree(path.parent)

    # --- steps -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            _make_public(self._root)
            with files.exclusive_lock(self._root / ".lock"):
                yield
        except BlockingIOError as error:
            raise errors.STATE_CONFLICT(
                what="The set of copies on this host", state="being changed by another process",
                expected="one change at a time",
            ) from error  # fmt: skip
        except OSError as error:
            raise files.from_os_error(error, self._root) from error

    def _sweep(self) -> None:
        """Delete what is not in its place: it is ours, or was left by work that was interrupted."""
        for path in self._root.glob(".[no]*-*"):
            files.remove_tree(path)

    def _path(self, runner: str, version: str) -> Path:
        path = self._root / names.check_runner(runner) / names.check_runner_version(version)
        if not path.is_dir() or path.is_symlink():
            raise errors.RUNNER_MISSING(runner=f"{runner}@{version}", path=str(path))
        return path

    def _versions(self, runner: str) -> list[Path]:
        return [path for path in copies.versions(self._root) if path.parent.name == runner]

    def _place(self, fresh: Path, made: copies.Copy) -> tuple[copies.Found, bool]:
        target = self._root / made.runner / made.version
        if (target / copies.DESCRIPTION).exists():
            there = copies.check(target)
            if there.copy.sha256 == made.sha256:
                return there, False
            problem = f"version {made.version} is installed with other files ({there.shown}); remove it first"
            raise _unsuitable_for(made.runner, made.source, problem)
        files.write_atomic(fresh / copies.DESCRIPTION, msgspec.json.encode(made), mode=0o444)
        files.sync_tree(fresh)
        _make_public(target.parent)
        if target.exists():  # its description is gone: somebody was interrupted as he took it away
            target.replace(self._root / f".old-{secrets.token_hex(4)}")
        fresh.replace(target)
        files.sync_directory(target.parent)
        files.sync_directory(self._root)
        return copies.check(target), True

    def _make_default(self, found: copies.Found) -> None:
        link = found.path.parent / copies.DEFAULT
        fresh = link.with_name(f".{copies.DEFAULT}-{secrets.token_hex(4)}")
        fresh.symlink_to(found.path.name)
        fresh.replace(link)
        files.sync_directory(link.parent)

    def _take(self, path: Path) -> list[str]:
        """Take a copy away unless live tasks have it, which are returned; see agentina/host/work/choices.py."""
        description, aside = path / copies.DESCRIPTION, path / f".{copies.DESCRIPTION}"
        is_described = description.exists()
        if is_described:
            description.replace(aside)
        tasks = choices.in_use(self._layout.state_directory).get(f"{path.parent.name}@{path.name}", [])
        if tasks:
            if is_described:
                aside.replace(description)
            return tasks
        doomed = self._root / f".old-{secrets.token_hex(4)}"
        path.replace(doomed)
        files.sync_directory(path.parent)
        files.remove_tree(doomed)
        return []

    def _clean(self, runner: str) -> None:
        """Remove the oldest copies that nobody needs."""
        kept = sorted(
            (found for found in copies.read(self._root) if found.copy.runner == runner),
            key=lambda found: found.copy.installed_ms,
            reverse=True,
        )
        for found in kept[KEEP:]:
            if not found.is_default:
                self._take(found.path)


def digest_of(path: Path) -> str:
    """SHA-256 over names, permissions and contents of a copy's files."""
    total = hashlib.sha256()
    for each in sorted(each for each in path.rglob("*") if not each.is_dir()):
        relative = each.relative_to(path)
        if str(relative) == copies.DESCRIPTION:
            continue
        mode = "x" if each.stat().st_mode & stat.S_IXUSR else "-"
        total.update(f"{mode} {_hash(each)}  {relative}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def is_intact(found: copies.Found) -> bool:
    """Whether a copy's files are those that were installed."""
    return digest_of(found.path) == found.copy.sha256


# --- sources ---------------------------------------------------------------------------------------------------------


def _check_source(wish: Wish) -> str:
    """The hash of the source, if it is a file, which must be the one that is wished."""
    if not wish.source.exists():
        raise errors.FILE_UNREADABLE(where=str(wish.source), problem="there is no such file or directory")
    if wish.source.is_dir():
        if wish.sha256:
            raise _unsuitable(wish, "a directory has no hash to compare; give the package itself")
        return ""
    found = _hash(wish.source)
    if wish.sha256 and found != wish.sha256.lower().removeprefix("sha256:"):
        raise _unsuitable(wish, f"its SHA-256 is {found}")
    return found


def _copy_all(wish: Wish, target: Path) -> None:
    """Copy what the source has, of whichever kind it is."""
    try:
        with contextlib.ExitStack() as stack:
            _write(wish, _items(wish, stack), target)
    except _DAMAGES as error:
        raise _unsuitable(wish, f"it is damaged ({error})") from error


def _items(wish: Wish, stack: contextlib.ExitStack) -> Iterator[Item]:
    source = wish.source
    if source.is_dir():
        return _items_of_directory(wish)
    if source.suffix in {".whl", ".zip"}:
        return _items_of_zip(wish, stack.enter_context(zipfile.ZipFile(source)))
    if tarfile.is_tarfile(source):
        return _items_of_tar(wish, stack.enter_context(tarfile.open(source)))
    program = functools.partial(_open, source)
    return iter([Item((registry.usual_program(wish.runner),), program, is_executable=True)])


def _items_of_directory(wish: Wish) -> Iterator[Item]:
    for path in sorted(wish.source.rglob("*")):
        if path.is_symlink():
            raise _unsuitable(wish, f"{path.relative_to(wish.source)} is a link")
        if path.is_file():
            is_executable = bool(path.stat().st_mode & stat.S_IXUSR)
            yield Item(path.relative_to(wish.source).parts, functools.partial(_open, path), is_executable)


def _items_of_zip(wish: Wish, archive: zipfile.ZipFile) -> Iterator[Item]:
    for entry in archive.infolist():
        if not entry.is_dir():
            is_executable = bool(entry.external_attr >> 16 & stat.S_IXUSR)
            yield Item(_parts(wish, entry.filename), functools.partial(archive.open, entry), is_executable)


def _items_of_tar(wish: Wish, tar: tarfile.TarFile) -> Iterator[Item]:
    for entry in tar:
        if entry.isreg():
            is_executable = bool(entry.mode & stat.S_IXUSR)
            yield Item(_parts(wish, entry.name), functools.partial(_open_entry, tar, entry), is_executable)
        elif not entry.isdir():
            raise _unsuitable(wish, f"{entry.name[:80]!r} is neither a file nor a directory")


def _open_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(entry)
    assert found is not None  # it is a file
    return found


def _parts(wish: Wish, name: str) -> tuple[str, ...]:
    parts = tuple(name.removeprefix("./").split("/"))
    if {"", ".", ".."} & {*parts} or len(parts) > _MAX_DEPTH or not name.isprintable():
        raise _unsuitable(wish, f"{name[:80]!r} is no name that can be used")
    return parts


def _write(wish: Wish, items: Iterator[Item], target: Path) -> None:
    """Write files that nobody may change any more; what they are made from may be anything."""
    left = min(MAX_BYTES, shutil.disk_usage(target).free - _RESERVE)
    try:
        for number, item in enumerate(items):
            path = target.joinpath(*item.parts)
            if number >= MAX_FILES:
                raise _unsuitable(wish, f"it has more than {MAX_FILES} files")
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with item.open() as source, path.open("xb") as made:
                first = piece = source.read(_PIECE)
                while piece:
                    left -= made.write(piece)
                    if left < 0:
                        raise _no_room(wish, target)
                    piece = source.read(_PIECE)
                is_executable = item.is_executable or first.startswith(_PROGRAMS)
                os.fchmod(made.fileno(), 0o555 if is_executable else 0o444)
    except FileExistsError as error:
        raise _unsuitable(wish, f"{error.filename} is in it twice") from error
    for directory in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)


def _make_public(directory: Path) -> None:
    """Make a directory that tasks may look into, whatever the operator's umask."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)


def _no_room(wish: Wish, target: Path) -> errors.AgentinaError:
    if shutil.disk_usage(target).free <= _RESERVE + _PIECE:
        return errors.DISK_FULL(path=str(target))
    return _unsuitable(wish, f"it has more than {MAX_BYTES} bytes")


# --- the program -----------------------------------------------------------------------------------------------------


def _find_program(fresh: Path, wish: Wish) -> str:
    """Path of the program in the copy."""
    if wish.program:
        path = fresh.joinpath(*_parts(wish, wish.program))
        if not path.is_file():
            raise _unsuitable(wish, f"it has no file {wish.program!r}")
        return str(path.relative_to(fresh))
    usual = registry.usual_program(wish.runner)
    wanted = {usual, f"{usual}.js", f"{usual}.mjs", f"{usual}.exe"}
    named = [path for path in sorted(fresh.rglob("*")) if path.name in wanted and path.is_file()]
    found = [path for path in named if os.access(path, os.X_OK)]
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(fresh)) for path in found[:5])
        problem = f"it has several programs called {usual}: {listed}" if found else f"it has no program called {usual}"
        raise _unsuitable(wish, f"{problem}; say which with --program")
    return str(found[0].relative_to(fresh))


def _find_version(wish: Wish, said: str) -> str:
    """The version that the program says; one that was given must be the same."""
    given = names.check_runner_version(wish.version) if wish.version else ""
    if given == copies.DEFAULT:
        raise _unsuitable(wish, f"no version is called {copies.DEFAULT}")
    if not said and not given:
        raise _unsuitable(wish, "the program does not run here, or does not say its version; give --version")
    if said and given and said != given:
        raise _unsuitable(wish, f"the program says that it is {said}, not {given}")
    return names.check_runner_version(given or said)


def _ask_version(program: Path, *, is_careful: bool) -> str:
    """What ``--version`` says, asked as somebody who may nothing; empty: nothing that could be a version."""
    with tempfile.TemporaryDirectory() as home:
        nobody = users.find("nobody") if is_careful and os.geteuid() == 0 else None
        become: dict[str, Any] = {}
        if nobody is not None:
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
            become = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        environment = {"HOME": home, "TMPDIR": home, "PATH": contract.SEARCH_PATH}
        try:
            done = subprocess.run(
                [str(program), "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE,
                check=False, cwd=home, env=environment, **become,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return ""
    found = _VERSION.search(done.stdout[:4096].decode(errors="replace"))
    return "" if found is None or done.returncode != 0 else found[0]


# --- files -----------------------------------------------------------------------------------------------------------


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error


def _unsuitable(wish: Wish, problem: str) -> errors.AgentinaError:
    return _unsuitable_for(wish.runner, str(wish.source), problem)


def _unsuitable_for(runner: str, source: str, problem: str) -> errors.AgentinaError:
    return errors.RUNNER_COPY_UNSUITABLE(source=source, runner=runner, problem=problem)

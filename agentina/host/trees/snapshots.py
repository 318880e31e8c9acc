"""Declared artifacts: found inside the workspace, copied out of it, hashed on the way.

The workspace is what a job left, so nothing in it is trusted: directories are walked by descriptor without following
symbolic links, only regular files are taken, and names, numbers and sizes are bounded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import hashlib
import os
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.protocol import names
from agentina.system import files

#: Most artifacts of one task, the patch included.
MAX_ARTIFACTS: Final = 1000
#: Most directory entries looked at for one task's patterns.
_MAX_ENTRIES: Final = 500_000
_MAX_DEPTH: Final = 100
_PIECE: Final = 1 << 20
#: O_NONBLOCK: opening a FIFO must not wait for a writer.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAGIC: Final = frozenset("*?[")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """A file that was copied out of a workspace."""

    #: Name of the artifact.
    name: str
    #: Where it was, relative to the workspace.
    source: str
    path: Path
    size: int
    sha256: str


def copy_matches(workspace: Path, patterns: list[str], target: Path, *, limit: int) -> list[Copied]:
    """Copy what ``patterns`` match below ``workspace`` into ``target``, durably. Blocks; call it in a thread.

    ``*``, ``?`` and ``[…]`` match within one part of a path, ``**`` any number of parts; a directory that matches
    stands for all files in it. Copies have numbers as names.

    Args:
        workspace: Where to look.
        patterns: Relative glob patterns, checked when the job was submitted.
        target: Existing directory for the copies.
        limit: Most bytes of all copies together.

    Raises:
        AgentinaError: ``ARTIFACTS_TOO_LARGE``.
        OSError: The copy could not be written.

    """
    copies: list[Copied] = []
    left = limit
    with files.opened(workspace, files.DIRECTORY) as root:
        for parts in sorted(_matches(root, patterns)):
            if len(copies) >= MAX_ARTIFACTS - 1:
                raise errors.ARTIFACTS_TOO_LARGE(found="too many files", limit=f"{MAX_ARTIFACTS - 1} files")
            copied = _copy(root, parts, target / str(len(copies)), left=left, limit=limit)
            if copied is not None:
                copies.append(copied)
                left -= copied.size
    return copies


def find_missing(workspace: Path, paths: list[str]) -> list[str]:
    """Those of ``paths`` (no patterns) at which no file is, nor a directory with one. Blocks; call it in a thread.

    Raises:
        AgentinaError: ``ARTIFACTS_TOO_LARGE``.
        OSError: There is no workspace.

    """
    budget = _Budget()
    with files.opened(workspace, files.DIRECTORY) as root:
        return [path for path in paths if next(_walk(root, (), _parts(glob.escape(path)), budget), None) is None]


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. Blocks; call it in a thread."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def artifact_name(parts: tuple[str, ...]) -> str:
    """The artifact's name for a path in the workspace; unusual characters are percent-encoded, overlong ones hashed."""
    name = "/".join(parts)
    with contextlib.suppress(errors.AgentinaError):
        return names.check_artifact(name)
    encoded = urllib.parse.quote_from_bytes(os.fsencode(name), safe="/ ")
    with contextlib.suppress(errors.AgentinaError):
        return names.check_artifact(encoded)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{digest}-{urllib.parse.quote_from_bytes(os.fsencode(parts[-1]), safe=' ')[-100:]}"


class _Budget:
    """Bounds the walk."""

    def __init__(self) -> None:
        self._left = _MAX_ENTRIES

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise errors.ARTIFACTS_TOO_LARGE(found="a very large tree to search", limit=f"{_MAX_ENTRIES} entries")


def _matches(root: int, patterns: list[str]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    budget = _Budget()
    for pattern in patterns:
        for match in _walk(root, (), _parts(pattern), budget):
            found.add(match)
            if len(found) > MAX_ARTIFACTS:
                raise errors.ARTIFACTS_TOO_LARGE(found="too many files", limit=f"{MAX_ARTIFACTS - 1} files")
    return found


def _parts(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part not in {"", "."}]


def _walk(directory: int, above: tuple[str, ...], parts: list[str], budget: _Budget) -> Iterator[tuple[str, ...]]:
    """Files below the open ``directory`` (at ``above``) whose remaining path matches ``parts``."""
    if len(above) > _MAX_DEPTH:
        return
    first, rest = (parts[0], parts[1:]) if parts else ("**", [])
    if first == "**" and rest:
        yield from _walk(directory, above, rest, budget)  # "**" standing for nothing
    for name, is_directory in _candidates(directory, first, budget):
        path = (*above, name)
        if not is_directory:
            if not rest:
                yield path
            continue
        with contextlib.suppress(OSError), files.opened(name, files.DIRECTORY, within=directory) as inner:
            yield from _walk(inner, path, parts if first == "**" else rest, budget)


def _candidates(directory: int, pattern: str, budget: _Budget) -> list[tuple[str, bool]]:
    """Entries of a directory that one part of a pattern matches, and whether each is a directory."""
    if not _MAGIC & set(pattern):
        budget.spend()
        try:
            mode = os.stat(pattern, dir_fd=directory, follow_symlinks=False).st_mode
        except (OSError, ValueError):
            return []
        return [(pattern, stat.S_ISDIR(mode))] if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else []
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as listing:
        for entry in listing:
            budget.spend()
            # The repository's own files are not meant by a wildcard.
            if entry.name == ".git" or not (pattern == "**" or fnmatch.fnmatchcase(entry.name, pattern)):
                continue
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory or entry.is_file(follow_symlinks=False):
                found.append((entry.name, is_directory))
    return found


def _copy(root: int, parts: tuple[str, ...], target: Path, *, left: int, limit: int) -> Copied | None:
    """Copy one file; None when it is no regular file any more."""
    with contextlib.ExitStack() as stack:
        try:
            directory = root
            for part in parts[:-1]:
                directory = stack.enter_context(files.opened(part, files.DIRECTORY, within=directory))
            source = stack.enter_context(files.opened(parts[-1], _FILE, within=directory))
            status = os.fstat(source)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        too_large = errors.ARTIFACTS_TOO_LARGE(found=f"{'/'.join(parts)[:200]!r} does not fit", limit=f"{limit} bytes")
        if status.st_size > left:
            raise too_large
        digest = hashlib.sha256()
        size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(target, flags, 0o600), "wb", buffering=0) as file:  # noqa: PTH123 - by descriptor
            while piece := os.read(source, _PIECE):
                size += len(piece)
                if size > left:  # it grew meanwhile
                    raise too_large
                digest.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
    return Copied(name=artifact_name(parts), source="/".join(parts), path=target, size=size, sha256=digest.hexdigest())

"""What a build of a release consists of: the files in its directory, named and hashed by ``manifest.json``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.protocol import inputs
from agentina.system import files
from agentina.updates import channels, versions

NAME: Final = "manifest.json"
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", re.ASCII)


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file beside the manifest."""

    name: str
    length: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A build, for all its architectures."""

    version: str
    #: First line of the notes.
    title: channels.Title
    #: Time the sources were committed, ISO 8601 in UTC; a build has no time of its own, or it could not be repeated.
    built: str
    notes: File
    #: By architecture.
    archives: dict[str, File]
    #: By architecture.
    sboms: dict[str, File]

    @property
    def files(self) -> list[File]:
        """All files."""
        return [self.notes, *self.archives.values(), *self.sboms.values()]


def describe(path: Path) -> File:
    """The entry of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name=path.name, length=path.stat().st_size, sha256=digest)


def write(directory: Path, manifest: Manifest) -> Path:
    """Write the manifest of ``directory``; raises like :func:`agentina.system.files.write_atomic`."""
    content = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"
    files.write_atomic(directory / NAME, content, mode=0o644)
    return directory / NAME


def read(directory: Path) -> Manifest:
    """The build in ``directory``, every file of it compared with the manifest.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``INPUT_INVALID``, ``NAME_INVALID``.

    """
    path = directory / NAME
    try:
        manifest = msgspec.json.decode(files.read_bounded(path, limit=channels.MAX_DOCUMENT), type=Manifest)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error
    except msgspec.ValidationError as error:
        raise inputs.explain(error, Manifest, str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.INPUT_UNREADABLE(where=str(path), problem=str(error)) from error
    versions.check(manifest.version)
    unknown = sorted({*manifest.archives, *manifest.sboms} - {*channels.ARCHITECTURES})
    if unknown or not manifest.archives:
        problem = f"expected archives for {' or '.join(channels.ARCHITECTURES)}, got {', '.join(unknown) or 'none'}"
        raise errors.INPUT_INVALID(where=str(path), problem=problem)
    for one in manifest.files:
        if _FILE.fullmatch(one.name) is None:
            raise errors.INPUT_INVALID(where=str(path), problem=f"{one.name[:60]!r} is no plain file name")
        try:
            found = describe(directory / one.name)
        except OSError as error:
            raise errors.FILE_UNREADABLE(where=str(directory / one.name), problem=error.strerror or "?") from error
        if found != one:
            raise errors.INPUT_INVALID(where=str(directory / one.name), problem="it is not what the manifest names")
    return manifest

"""Copies of AI agents' command lines that this host keeps: one of each version, read-only, for all tasks.

=========================================  ==================================================
``/opt/agentina/runners/NAME/VERSION/``    what a wheel, an archive or a directory brought
``…/copy.json``                            :class:`Copy`: what it is, and the hash of its files
``…/NAME/default``                         link to the version that jobs get which ask for none
=========================================  ==================================================

A version's files never change; another version is another directory. They are root's, so no task and no daemon can
change what the next task starts. :mod:`agentina.host.provision` puts copies there and takes them away; here they are
read, without looking at their content: that is what `agentina runner list --verify` does.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from agentina import errors
from agentina.protocol import inputs, names
from agentina.system import files

#: The description in each copy; no file of a copy is called so.
DESCRIPTION: Final = "copy.json"
DEFAULT: Final = "default"
_MAX_DESCRIPTION: Final = 1 << 16
#: Characters of a hash that are shown.
_SHOWN: Final = 12

_log = logging.getLogger(__name__)


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """``copy.json``."""

    runner: str
    version: str
    #: Path of the program in the copy.
    program: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    #: SHA-256 over names, permissions and contents of all files.
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    #: The file or directory that it was made from, and the SHA-256 of that, if it was a file.
    source: str = ""
    source_sha256: str = ""
    installed_ms: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A copy that can be used."""

    copy: Copy
    path: Path
    is_default: bool

    @property
    def name(self) -> str:
        """As a job asks for it."""
        return f"{self.copy.runner}@{self.copy.version}"

    def is_there(self) -> bool:
        """Whether it has not been taken away meanwhile: then its description goes first."""
        return (self.path / DESCRIPTION).exists()

    @property
    def program(self) -> Path:
        """What to start."""
        return self.path / self.copy.program

    @property
    def shown(self) -> str:
        """For people: what it is, and the beginning of its hash."""
        return f"{self.name} sha256:{self.copy.sha256[:_SHOWN]}"


def read(directory: Path) -> list[Found]:
    """The copies below ``directory`` that can be used, by name; the log says what is wrong with the others."""
    found = []
    for path in versions(directory):
        try:
            found.append(check(path))
        except errors.AgentinaError as error:
            _log.error(
                "a copy of a runner is not offered: %s", error, extra={"action": "copy-damaged", "code": error.code}
            )
    return found


def check(path: Path) -> Found:
    """The copy in ``path``, which names it by its last two parts.

    Raises:
        AgentinaError: ``RUNNER_COPY_DAMAGED``: it cannot be read, is another one inside, or others could change it.

    """
    runner, version = path.parent.name, path.name
    try:
        document = files.read_bounded(path / DESCRIPTION, limit=_MAX_DESCRIPTION)
        copy = inputs.decode(document, Copy, str(path / DESCRIPTION), limit=_MAX_DESCRIPTION)
        names.check_runner(runner)
        names.check_runner_version(version)
        found = Found(copy=copy, path=path, is_default=default(path.parent) == version)
        if (copy.runner, copy.version) != (runner, version):
            raise _damaged(path, f"it is {copy.runner[:40]}@{copy.version[:40]} inside")
        for each in (path.parent.parent, path.parent, path, path / DESCRIPTION, found.program):
            _check_owner(each)
        if not os.access(found.program, os.X_OK) or not found.program.is_file():
            raise _damaged(path, f"{copy.program} is no program")
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except errors.AgentinaError as error:
        if error.entry is errors.RUNNER_COPY_DAMAGED:
            raise
        raise _damaged(path, error.message) from error
    return found


def versions(directory: Path) -> Iterator[Path]:
    """Directories below ``directory`` that could be copies, whole or not."""
    try:
        runners = sorted(directory.iterdir())
    except OSError:
        return
    for runner in runners:
        if not runner.name.startswith(".") and runner.is_dir():
            for path in sorted(runner.iterdir()):
                if not path.name.startswith(".") and path.is_dir() and not path.is_symlink():
                    yield path


def default(runner: Path) -> str:
    """The version of a runner that jobs get which ask for none; empty: there is no such."""
    try:
        return str((runner / DEFAULT).readlink())
    except OSError:
        return ""


def _check_owner(path: Path) -> None:
    """Refuse what anybody but root, or whom we are, may change."""
    seen = path.lstat()
    if stat.S_ISLNK(seen.st_mode) or seen.st_uid not in {0, os.geteuid()} or seen.st_mode & 0o022:
        raise _damaged(path, "others than root may change it")


def _damaged(path: Path, problem: str) -> errors.AgentinaError:
    return errors.RUNNER_COPY_DAMAGED(path=str(path), problem=problem)

"""The release repository beside the control plane: signed anew in time, offered to agents, served to anybody.

It lies in ``releases`` of the data directory (:mod:`agentina.updates.repository`); publishing is done there with the
offline keys, by `agentina release` or by copying. With the online key in ``release-online.key`` this process announces
what was published and renews it before it expires. Without a repository nothing of TUF is imported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.control import plane

#: Seconds between looks at the repository.
_PERIOD: Final = 60.0
#: Bytes a piece of a download has.
_PIECE: Final = 256 << 10
#: Downloads of files larger than a piece at the same time; the others are told to come back.
_MOST_DOWNLOADS: Final = 64
#: What may be asked for: the two public directories, plain names, no dot in front.
_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9._+%-]{0,199}"
_PATH: Final = re.compile(rf"(?:metadata|targets)(?:/{_NAME}){{1,4}}", re.ASCII)
#: How Debian calls what uname(2) says of the machine.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}

_log = logging.getLogger(__name__)


class Releases:
    """The duty for the repository."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control
        self._next = 0.0

    @property
    def due(self) -> float:
        """Boot time at which :meth:`keep_current` has something to do again."""
        return self._next

    async def keep_current(self) -> None:
        """Look at the repository when it is time to. Raises like :func:`look`; the next look comes all the same."""
        now = self._control.clock.boot()
        if now >= self._next:
            self._next = now + _PERIOD
            await look(self._control)


async def look(control: plane.Plane) -> None:
    """Announce, renew, and learn what there is to offer, where there is a repository.

    Raises:
        AgentinaError: The repository or its key is not as it must be.

    """
    if not (directory(control) / "metadata").is_dir():
        return
    control.offers, control.published, expiries = await control.blobs.in_thread(lambda: _look(control))
    for role, moment in expiries.items():
        control.metrics.release_expiry.labels(role).set(moment.timestamp())


def _look(control: plane.Plane) -> tuple[dict[tuple[str, str], tuple[str, str]], frozenset[str], dict[str, datetime]]:
    # Here and not above: a control plane without a repository does not pay for it.
    from agentina.updates import channels, keyfiles, repository  # noqa: PLC0415

    place, key = repository.Repository(directory(control)), control.settings.data / "release-online.key"
    now = datetime.fromtimestamp(control.clock.wall_ms() / 1000, UTC)
    if key.exists() and place.sign_online(keyfiles.load(key), now=now):
        _log.info("signed the release repository", extra={"action": "releases-signed"})
    announced = list(place.announced())
    published = frozenset(release.version for channel in announced for release in channel.releases)
    newest = {
        (channel.channel, architecture): (release.version, release.title)
        for channel in announced
        for architecture in channels.ARCHITECTURES
        if (release := channel.newest(architecture)) is not None
    }
    return newest, published, place.expiries()


def directory(control: plane.Plane) -> Path:
    """Where the repository is."""
    return control.settings.data / "releases"


def newest(control: plane.Plane, *, channel: str, machine: str) -> tuple[str, str]:
    """Version and title of the newest release of a channel for a machine; empty strings: none is known."""
    return control.offers.get((channel, _ARCHITECTURES.get(machine, machine)), ("", ""))


def offer(control: plane.Plane, *, channel: str, machine: str, version: str) -> tuple[str, str]:
    """Version and title of a newer release than ``version`` for an agent; empty strings: there is none."""
    found = newest(control, channel=channel, machine=machine)
    return found if is_behind(version, found[0]) else ("", "")


def is_behind(version: str, there_is: str) -> bool:
    """Whether ``there_is`` (empty: nothing) is newer than ``version``; what is no version is older than any."""
    if not there_is:
        return False
    from agentina.updates import versions  # noqa: PLC0415 - only where there are releases

    return not versions.is_valid(version) or (versions.is_valid(there_is) and versions.is_newer(there_is, version))


def find(control: plane.Plane, name: str) -> Path:
    """The public file ``name`` of the repository.

    Raises:
        AgentinaError: ``NOT_FOUND``.

    """
    path = directory(control) / name
    if _PATH.fullmatch(name) is None or not path.is_file():
        raise errors.NOT_FOUND(what="release file", name=name[:200])
    return path


def is_lasting(name: str) -> bool:
    """Whether a file of that name never changes: all but the timestamp carry a version or a hash."""
    return name != "metadata/timestamp.json"


def read(control: plane.Plane, path: Path, size: int) -> AsyncGenerator[bytes, None]:
    """The content of a file in pieces.

    Raises:
        AgentinaError: ``OVERLOADED``: too many are being read.

    """
    if size <= _PIECE:
        # Metadata: who reads it slowly holds nothing of value, and nobody is kept from seeing what is new.
        return _pieces(control, path, size)
    if control.release_downloads >= _MOST_DOWNLOADS:
        raise errors.OVERLOADED(what="downloads of releases", retry_after=30)
    return _counted(control, path, size)


async def _counted(control: plane.Plane, path: Path, size: int) -> AsyncGenerator[bytes, None]:
    control.release_downloads += 1
    try:
        async for piece in _pieces(control, path, size):
            yield piece
    finally:
        control.release_downloads -= 1


async def _pieces(control: plane.Plane, path: Path, size: int) -> AsyncGenerator[bytes, None]:
    for offset in range(0, size, _PIECE):
        yield await control.blobs.read_piece(path, offset, _PIECE)

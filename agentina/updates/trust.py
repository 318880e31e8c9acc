"""What of a release repository may be believed: the client side of TUF, on python-tuf's ngclient.

The rules are the specification's (theupdateframework.github.io/specification, section 5), applied in its order: root
chain from the pinned root, timestamp, snapshot, targets; signatures by thresholds of the root's keys, versions that
never go back, hashes and lengths that match, nothing expired. Nothing is written to the metadata directory that was
not verified, and a target gets its name only when its length and hash are right.

What is refused, and as what:

=========================================================  =============================
a file tampered with, truncated, too long, of wrong hash    ``UPDATE_UNTRUSTED``
too few or no signatures, keys that were rotated out        ``UPDATE_UNTRUSTED``
older versions than seen before (rollback, mix-and-match)   ``UPDATE_UNTRUSTED``
metadata past its date (freeze)                             ``UPDATE_EXPIRED``
silence, trickling, HTTP errors, no DNS                     ``UPDATE_UNREACHABLE``
a target that no trusted metadata lists                     ``RELEASE_UNKNOWN``
=========================================================  =============================

All of it refuses an *installation* only: what runs goes on running whatever the metadata says, since nothing but the
updater imports this. ``UPDATE_UNREACHABLE`` and ``DISK_FULL`` say nothing about a release, so it is tried again.

::

    with trust.Client(directory=metadata, metadata_url=url, root=pinned) as client:
        client.refresh()
        target = client.find("channels/stable.json")
        path = client.download(target, base_url=targets_url, directory=staging)

Power cuts: every file is replaced as a whole and made durable at the end of a refresh. A file that is damaged all the
same is fetched again, and the chain of roots begins at the pinned one, which is not in this directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from tuf import ngclient
from tuf.api import exceptions, metadata

from agentina import errors
from agentina.system import clock as clocks
from agentina.system import files
from agentina.updates import ed25519, fetching

#: Largest root that is taken as the first one, in bytes (that of ngclient for the later ones).
MAX_ROOT: Final = 512_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Limits of one client."""

    #: Seconds all metadata may take together.
    metadata_seconds: float = 120.0
    #: Seconds without a byte after which a download ends.
    silence_seconds: float = 20.0
    #: Largest target, in bytes, whatever its metadata says.
    target_bytes: int = 512 << 20
    #: Slowest rate accepted for a target, besides a fixed minute.
    bytes_per_second: int = 32 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A file that trusted metadata lists."""

    info: ngclient.TargetFile

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.info.path

    @property
    def length(self) -> int:
        """Its size in bytes."""
        return self.info.length


class Client:
    """One look at a repository. Used by one process at a time, which holds the updater's lock."""

    def __init__(
        self, *, directory: Path, metadata_url: str, root: bytes | None, bounds: Bounds | None = None,
        ca_file: str = "", clock: clocks.Clock | None = None,
    ) -> None:  # fmt: skip
        """Begin with what is trusted already.

        Args:
            directory: Where verified metadata is kept, under the roles' names without versions.
            metadata_url: Where the repository's metadata is.
            root: The pinned root; None takes ``root.json`` of the directory, which :func:`initialize` put there.
            bounds: Limits.
            ca_file: Certificates (PEM) to trust besides the system's, for https.
            clock: For deadlines.

        Raises:
            AgentinaError: ``UPDATE_UNTRUSTED`` when the root itself is not valid, ``STATE_UNWRITABLE``, ``DISK_FULL``.

        """
        ed25519.register()
        self._directory = directory
        self._url = metadata_url
        self._bounds = bounds or Bounds()
        self._fetcher = fetching.Fetcher(
            silence_seconds=self._bounds.silence_seconds, clock=clock or clocks.SystemClock(), ca_file=ca_file
        )
        config = ngclient.UpdaterConfig(root_max_length=MAX_ROOT)
        with self._explained():
            self._updater = ngclient.Updater(
                str(directory), metadata_url, fetcher=self._fetcher, config=config, bootstrap=root
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._fetcher.close()

    def refresh(self) -> None:
        """Bring the metadata up to date, once in this object's life.

        Raises:
            AgentinaError: See the module; what was trusted before stays.

        """
        with self._explained(), self._fetcher.limit(self._bounds.metadata_seconds):
            try:
                self._updater.refresh()
            finally:
                _make_durable(self._directory)

    def find(self, name: str) -> Target:
        """The target called ``name``; brings the metadata up to date where that was not done yet.

        Raises:
            AgentinaError: ``RELEASE_UNKNOWN``, and see the module.

        """
        with self._explained(), self._fetcher.limit(self._bounds.metadata_seconds):
            try:
                info = self._updater.get_targetinfo(name)
            finally:
                _make_durable(self._directory)
        if info is None:
            raise errors.RELEASE_UNKNOWN(what=name, where="the repository's metadata")
        return Target(info)

    def download(self, target: Target, *, base_url: str, directory: Path) -> Path:
        """The file of ``target`` in ``directory``, fetched unless a good copy is there.

        Raises:
            AgentinaError: See the module; no file of that name is left behind then, except an earlier one.

        """
        if target.length > self._bounds.target_bytes:
            problem = f"{target.name} has {target.length} bytes, more than {self._bounds.target_bytes}"
            raise errors.UPDATE_UNTRUSTED(problem=problem)
        path = directory / file_name(target.name)
        part = path.with_name(f".{path.name}.part")
        seconds = 60 + target.length / self._bounds.bytes_per_second
        with self._explained(directory):
            if self._updater.find_cached_target(target.info, str(path)):
                return path
            _check_room(directory, target.length)
            try:
                with self._fetcher.limit(seconds):
                    self._updater.download_target(target.info, str(part), base_url)
                files.sync_file(part)
                part.replace(path)
                files.sync_directory(directory)
            finally:
                part.unlink(missing_ok=True)
        return path

    @contextlib.contextmanager
    def _explained(self, path: Path | None = None) -> Iterator[None]:
        """Map what python-tuf and the system raise to the catalogue."""
        try:
            yield
        except exceptions.ExpiredMetadataError as error:
            raise errors.UPDATE_EXPIRED(problem=_text(error)) from error
        except exceptions.DownloadLengthMismatchError as error:
            raise errors.UPDATE_UNTRUSTED(problem=_text(error)) from error
        except exceptions.DownloadError as error:
            raise errors.UPDATE_UNREACHABLE(url=_without_secrets(self._url), problem=_text(error)) from error
        except exceptions.RepositoryError as error:
            raise errors.UPDATE_UNTRUSTED(problem=_text(error)) from error
        except OSError as error:
            raise files.from_os_error(error, path or self._directory) from error


def initialize(directory: Path, root: Path) -> None:
    """Trust the root metadata in file ``root`` from now on; it is looked at when it is used.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_TOO_LARGE``, ``STATE_UNWRITABLE``, ``DISK_FULL``.

    """
    try:
        content = files.read_bounded(root, limit=MAX_ROOT)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(root), problem=error.strerror or str(error)) from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.from_os_error(error, directory) from error
    files.write_atomic(directory / "root.json", content, mode=0o644)


def check_root(content: bytes) -> None:
    """Make sure that ``content`` is root metadata, signed by as many of its own keys as it asks for.

    Raises:
        AgentinaError: ``UPDATE_UNTRUSTED``.

    """
    ed25519.register()
    try:
        root = metadata.Metadata[metadata.Root].from_bytes(content)
        result = root.signed.get_root_verification_result(None, root.signed_bytes, root.signatures)
    except (exceptions.RepositoryError, AttributeError) as error:
        raise errors.UPDATE_UNTRUSTED(problem=f"the root is none ({_text(error)})") from error
    if not result.verified:
        raise errors.UPDATE_UNTRUSTED(problem="the root is not signed by its own keys")


def file_name(target: str) -> str:
    """The name of a target's file: its path with everything quoted that is not of a plain name."""
    quoted = urllib.parse.quote(target, safe="")
    # quote() leaves dots alone, and a file must not be called "." or "..".
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def _check_room(directory: Path, length: int) -> None:
    """Refuse before the download what the disk cannot hold."""
    directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(directory).free < length:
        raise errors.DISK_FULL(path=str(directory))


def _make_durable(directory: Path) -> None:
    """Write to disk what ngclient renamed into place; it leaves that to the system."""
    for path in (*directory.glob("*.json"), *directory.glob("root_history/*.json")):
        if path.is_file():
            files.sync_file(path)
    for place in (directory / "root_history", directory):
        if place.is_dir():
            files.sync_directory(place)


def _text(error: BaseException) -> str:
    """An exception's words on one line, with those of its cause where it has none of its own."""
    chain: list[Any] = [error, error.__cause__]
    words = next((str(part) for part in chain if part is not None and str(part)), type(error).__name__)
    return " ".join(words.split())[:300]


def _without_secrets(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

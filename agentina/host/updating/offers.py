"""What the signed release repository offers this host. Root's: used by the updater and operators.

The repository is the control plane's, or lies on the web server that the host's configuration names: what it says is
verified, so that whoever serves it need not be trusted (nor its connection: plain http will do).
The root of trust is ``/etc/agentina/release-root.json``; docs/adr/0012 says how it comes there: an operator puts it, or
``agentina install`` takes the repository's first root from the control plane, over the link that is trusted with the
host's jobs. What is there already is never replaced by that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from agentina import errors
from agentina.client import api
from agentina.host.instance import config
from agentina.protocol import names
from agentina.system import files, paths
from agentina.updates import channels, trust

#: How Debian calls what uname(2) says of the machine.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_FIRST_ROOT: Final = "/releases/metadata/1.root.json"
#: RFC 9110.
_NOT_FOUND: Final = 404


def architecture() -> str:
    """Debian's name of this machine's."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


class Offers:
    """One look at the repository; a context manager. Bounded and verified (:mod:`agentina.updates.trust`)."""

    def __init__(self, instance: paths.InstancePaths) -> None:
        """Begin with the pinned root.

        Raises:
            AgentinaError: ``RELEASE_ROOT_MISSING``, ``UPDATE_UNTRUSTED``, ``STATE_UNWRITABLE``, an input's fault.

        """
        settings = config.load(instance)
        self._base = settings.release_repository.rstrip("/") or f"{settings.control_plane.rstrip('/')}/releases"
        self._downloads = instance.updates / "downloads"
        try:
            self._downloads.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise files.from_os_error(error, self._downloads) from error
        self._client = trust.Client(
            directory=instance.updates / "metadata",
            metadata_url=f"{self._base}/metadata",
            root=_pinned(instance.layout),
            ca_file=settings.ca_file,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.__exit__(*exception)

    def newest(self, channel: str) -> channels.Release | None:
        """The newest release of a channel for this machine.

        Raises:
            AgentinaError: ``UPDATE_…``, ``RELEASE_UNKNOWN`` (no such channel there).

        """
        return self._document(channel).newest(architecture())

    def find(self, version: str) -> channels.Release:
        """The release ``version``, of whatever channel; not one that any channel took back.

        Raises:
            AgentinaError: ``UPDATE_…``, ``RELEASE_UNKNOWN``, ``RELEASE_UNSUITABLE``.

        """
        documents = list(self._documents())
        for document in documents:
            if any(one.version == version for one in document.withdrawn):
                document.find(version)  # raises, with the reason
        found = next((one for document in documents for one in document.releases if one.version == version), None)
        if found is None:
            raise errors.RELEASE_UNKNOWN(what=f"release {version}", where=self._base)
        if architecture() not in found.archives:
            raise errors.RELEASE_UNSUITABLE(version=version, problem=f"there is none for {architecture()}")
        return found

    def fetch(self, release: channels.Release) -> Path:
        """The archive of ``release``, on this disk and verified.

        Raises:
            AgentinaError: ``UPDATE_…``, ``DISK_FULL``, ``STATE_UNWRITABLE``.

        """
        return self._download(release.archives[architecture()])

    def _documents(self) -> Iterator[channels.Channel]:
        for name in names.CHANNELS:
            try:
                yield self._document(name)
            except errors.AgentinaError as error:
                if error.entry is not errors.RELEASE_UNKNOWN:
                    raise

    def _document(self, channel: str) -> channels.Channel:
        path = self._download(channels.path_of(channel))
        return channels.decode(files.read_bounded(path, limit=channels.MAX_DOCUMENT), channel)

    def _download(self, name: str) -> Path:
        target = self._client.find(name)
        return self._client.download(target, base_url=f"{self._base}/targets", directory=self._downloads)


def pin_root(instance: paths.InstancePaths) -> bool:
    """Trust the first root of the control plane's repository from now on, unless one is trusted already.

    Returns whether there is a root now; a control plane without a repository has none to give.

    Raises:
        AgentinaError: ``CONTROL_PLANE_UNREACHABLE``, ``UPDATE_UNTRUSTED``, ``STATE_UNWRITABLE``, an input's fault.

    """
    target = instance.layout.release_root
    if target.exists():
        return True
    settings = config.load(instance)
    with api.Client(settings.control_plane, ca_file=settings.ca_file) as client:
        try:
            answer = client.request("GET", _FIRST_ROOT, repeatable=True, limit=trust.MAX_ROOT)
        except errors.AgentinaError as error:
            if error.entry.status == _NOT_FOUND:
                return False
            raise
    trust.check_root(answer.body)
    files.write_atomic(target, answer.body, mode=0o644)
    return True


def _pinned(layout: paths.Layout) -> bytes:
    try:
        return files.read_bounded(layout.release_root, limit=trust.MAX_ROOT)
    except OSError as error:
        raise errors.RELEASE_ROOT_MISSING(path=str(layout.release_root)) from error

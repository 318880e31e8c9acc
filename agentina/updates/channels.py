"""The documents of a release repository: what a channel offers, and what can be done to it. Pure.

A channel is a TUF target of its own, ``channels/<channel>.json``; the files of a release are targets below
``releases/<version>/`` and belong to no channel. Promotion lists a release in another channel, so what was tested is,
byte for byte, what is installed.

What changes may do:

=========  =====================================================================================================
add        a version that the channel neither has nor withdrew
promote    the same, with the entry taken from another channel
withdraw   takes a version out and records why; it cannot come back under the same version
=========  =====================================================================================================
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from agentina import errors
from agentina.protocol import inputs, names
from agentina.updates import versions

#: Debian's names of the architectures releases are made for.
ARCHITECTURES: Final = ("amd64", "arm64")
#: Largest channel document or manifest, in bytes.
MAX_DOCUMENT: Final = 1 << 20
#: Releases and withdrawals kept in a channel's document; the oldest go first.
MAX_ENTRIES: Final = 200
_MAX_TEXT: Final = 500


#: A title travels in every answer to a heartbeat of an agent that has not got the release.
Title = Annotated[str, msgspec.Meta(max_length=200)]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release of a channel. Unknown fields are skipped, so that older hosts read newer documents."""

    version: str
    #: First line of its notes.
    title: Title
    #: When it was built, ISO 8601 in UTC.
    built: str
    #: Target paths of the archives by architecture.
    archives: dict[str, str]
    #: Target path of the notes (Markdown).
    notes: str
    #: Target paths of the bills of materials (CycloneDX JSON) by architecture.
    sboms: dict[str, str] = {}


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True):
    """A release that was taken back."""

    version: str
    reason: str
    #: ISO 8601 in UTC.
    withdrawn: str


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel offers."""

    channel: str
    #: Newest version first.
    releases: list[Release] = []
    withdrawn: list[Withdrawal] = []
    #: Form of this document.
    format: int = 1

    def find(self, version: str) -> Release:
        """The entry of ``version``.

        Raises:
            AgentinaError: ``RELEASE_UNKNOWN``, which gives the reason of a withdrawal.

        """
        for release in self.releases:
            if release.version == version:
                return release
        for withdrawal in self.withdrawn:
            if withdrawal.version == version:
                what = f"release {version} any more ({withdrawal.reason})"
                raise errors.RELEASE_UNKNOWN(what=what, where=f"channel {self.channel}")
        raise errors.RELEASE_UNKNOWN(what=f"release {version}", where=f"channel {self.channel}")

    def newest(self, architecture: str) -> Release | None:
        """The newest release for ``architecture``."""
        return next((release for release in self.releases if architecture in release.archives), None)


def path_of(channel: str) -> str:
    """The target of a channel's document.

    Raises:
        AgentinaError: ``INPUT_INVALID``.

    """
    if channel not in names.CHANNELS:
        problem = f"{channel[:40]!r} is none; there are {', '.join(names.CHANNELS)}"
        raise errors.INPUT_INVALID(where="channel", problem=problem)
    return f"channels/{channel}.json"


def add(channel: Channel, release: Release) -> Channel:
    """``channel`` with ``release``.

    Raises:
        AgentinaError: ``STATE_CONFLICT``.

    """
    known = dict.fromkeys((one.version for one in channel.releases), "in it already")
    known.update(dict.fromkeys((one.version for one in channel.withdrawn), "withdrawn from it"))
    if release.version in known:
        raise errors.STATE_CONFLICT(
            what=f"Release {release.version} of channel {channel.channel}", state=known[release.version],
            expected="a version that the channel never had",
        )  # fmt: skip
    releases = sorted([*channel.releases, release], key=lambda one: versions.order(one.version), reverse=True)
    return msgspec.structs.replace(channel, releases=releases[:MAX_ENTRIES])


def withdraw(channel: Channel, version: str, *, reason: str, now: str) -> Channel:
    """``channel`` without ``version``, which cannot come back.

    Raises:
        AgentinaError: ``RELEASE_UNKNOWN``, ``INPUT_INVALID``.

    """
    if not reason.strip() or len(reason) > _MAX_TEXT or not reason.isprintable():
        raise errors.INPUT_INVALID(where="reason", problem=f"expected one line of at most {_MAX_TEXT} characters")
    channel.find(version)
    taken = Withdrawal(version=version, reason=reason.strip(), withdrawn=now)
    return msgspec.structs.replace(
        channel,
        releases=[release for release in channel.releases if release.version != version],
        withdrawn=[taken, *channel.withdrawn][:MAX_ENTRIES],
    )


def decode(content: bytes, name: str) -> Channel:
    """The document of channel ``name``, checked.

    Raises:
        AgentinaError: ``INPUT_INVALID``, ``INPUT_UNREADABLE``.

    """
    where = path_of(name)
    try:
        channel = msgspec.json.decode(content, type=Channel)
    except msgspec.ValidationError as error:
        raise inputs.explain(error, Channel, where) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.INPUT_UNREADABLE(where=where, problem=str(error) or "nested too deeply") from error
    if channel.channel != name or channel.format != 1:
        problem = f"expected channel {name} in format 1, got {channel.channel[:40]!r} in format {channel.format}"
        raise errors.INPUT_INVALID(where=where, problem=problem)
    for release in channel.releases:
        versions.check(release.version)
    return channel


def encode(channel: Channel) -> bytes:
    """The document, the same bytes for the same content."""
    return msgspec.json.format(msgspec.json.encode(channel), indent=1) + b"\n"

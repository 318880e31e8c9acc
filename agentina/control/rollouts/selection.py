"""Which agents a rollout is for. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from agentina import errors
from agentina.protocol import names
from agentina.updates import versions

_LABEL: Final = "label."


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent must be; None and an empty dictionary leave it open."""

    organization: str | None = None
    role: str | None = None
    channel: str | None = None
    labels: dict[str, str] = {}

    def matches(self, *, organization: str, role: str | None, channel: str, labels: dict[str, str]) -> bool:
        """Whether an agent is chosen."""
        return (
            self.organization in {None, organization}
            and self.role in {None, role}
            and self.channel in {None, channel}
            and self.labels.items() <= labels.items()
        )

    def overlaps(self, other: Selection) -> bool:
        """Whether an agent could be chosen by both. Labels and roles change, so what agents there are now is no matter.

        An organization, a role, a channel or a label in which the two differ keeps them apart.
        """
        pairs = [
            (self.organization, other.organization), (self.role, other.role), (self.channel, other.channel),
            *((value, other.labels.get(key)) for key, value in self.labels.items()),
        ]  # fmt: skip
        return all(one is None or two is None or one == two for one, two in pairs)

    def is_open(self) -> bool:
        """Whether every agent is chosen."""
        return self == Selection()

    def words(self) -> str:
        """As it is written on a command line."""
        given = {"organization": self.organization, "role": self.role, "channel": self.channel}
        given |= {_LABEL + key: value for key, value in sorted(self.labels.items())}
        return ",".join(f"{key}={value}" for key, value in given.items() if value is not None) or "all agents"


def parse(terms: list[str]) -> Selection:
    """The selection that ``KEY=VALUE`` terms describe: organization, role, channel, and label.NAME.

    Raises:
        AgentinaError: ``INPUT_INVALID``, ``NAME_INVALID``.

    """
    fields: dict[str, str] = {}
    labels: dict[str, str] = {}
    for term in terms:
        key, equals, value = term.partition("=")
        into = labels if key.startswith(_LABEL) else fields
        name = key.removeprefix(_LABEL)
        if not equals or name in into or (into is fields and key not in {"organization", "role", "channel"}):
            problem = f"expected organization=, role=, channel= or label.NAME=, each once, got {term[:60]!r}"
            raise errors.INPUT_INVALID(where="select", problem=problem)
        into[name] = value
    for key, value in labels.items():
        names.check_label(key, value)
    if "organization" in fields:
        names.check_organization(fields["organization"])
    if "role" in fields:
        names.check_role(fields["role"])
    if fields.get("channel", names.CHANNELS[0]) not in names.CHANNELS:
        problem = f"channel {fields['channel'][:40]!r} is none; there are {', '.join(names.CHANNELS)}"
        raise errors.INPUT_INVALID(where="select", problem=problem)
    return Selection(labels=labels, **fields)


def is_newer(running: str, version: str) -> bool:
    """Whether an agent that runs ``running`` has no part in a rollout of ``version``, because it is further.

    Hosts refuse to be taken back to what may have known holes. What is no version counts as older.
    """
    return versions.is_valid(running) and versions.is_newer(running, version)

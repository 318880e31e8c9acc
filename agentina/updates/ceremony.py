"""Roots: who may sign what. Drafts of the first root and of every later one, for the key ceremony.

The ceremony itself, step by step, and the recovery from lost and stolen keys: docs/how-to/publish-releases.md.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from securesystemslib import signer
from tuf.api import metadata

from agentina import errors
from agentina.protocol import units
from agentina.updates import ed25519, repository

Named = tuple[str, ed25519.Key]
#: Where a key's name is kept in its entry: an unrecognized field, which TUF carries and signs.
_NAME = "x-agentina-name"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a root shall say of a role; None: as before."""

    keys: Sequence[Named] | None = None
    threshold: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A role as a root has it."""

    role: str
    threshold: int
    #: Names of its keys, with their ids shortened.
    keys: list[str]


def draft(
    place: repository.Repository, *, wanted: dict[str, Wanted], life: timedelta, now: datetime,
    signers: Sequence[ed25519.Signer] = (),
) -> repository.Signed:  # fmt: skip
    """Draft the next root, or the first one. It comes into force when enough keys have signed it.

    Args:
        place: The repository.
        wanted: Changes by role (``root``, ``targets``, ``online``).
        life: Until it expires.
        now: The time.
        signers: Keys that sign at once.

    Raises:
        AgentinaError: ``INPUT_INVALID`` for a role that nobody, or not enough keys, could sign.

    """
    try:
        root = copy.deepcopy(place.root().signed)
        root.version += 1
    except errors.AgentinaError as error:
        if error.entry is not errors.STATE_CONFLICT:
            raise
        root = metadata.Root(version=1, consistent_snapshot=True)
    root.expires = (now + life).astimezone(UTC).replace(microsecond=0)
    for name, one in wanted.items():
        for role in (repository.SNAPSHOT, repository.TIMESTAMP) if name == "online" else (name,):
            _set_role(root, role, one)
    for role in repository.ROLES:
        keys, threshold = len(root.roles[role].keyids), root.roles[role].threshold
        if not 1 <= threshold <= keys:
            problem = f"{role} would have {units.show_count(keys, 'key')} and a threshold of {threshold}"
            raise errors.INPUT_INVALID(where="root", problem=problem)
    offline = {*root.roles[repository.ROOT].keyids, *root.roles[repository.TARGETS].keyids}
    if offline & {*root.roles[repository.TIMESTAMP].keyids}:
        raise errors.INPUT_INVALID(where="root", problem="the online key must not be a root or targets key as well")
    return place.offer(repository.ROOT, root, signers)


def holders(place: repository.Repository) -> list[Holder]:
    """Who may sign what, by the root in force. Raises like :meth:`repository.Repository.root`."""
    root = place.root().signed
    return [
        Holder(
            role=role, threshold=root.roles[role].threshold,
            keys=sorted(_label(root.keys[keyid]) for keyid in root.roles[role].keyids),
        )
        for role in repository.ROLES
    ]  # fmt: skip


def _set_role(root: metadata.Root, role: str, wanted: Wanted) -> None:
    if wanted.keys is not None:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for name, key in wanted.keys:
            key.unrecognized_fields[_NAME] = name
            root.add_key(key, role)
    if wanted.threshold is not None:
        root.roles[role].threshold = wanted.threshold


def _label(key: signer.Key) -> str:
    name = key.unrecognized_fields.get(_NAME)
    return f"{name} ({key.keyid[:16]})" if isinstance(name, str) else key.keyid[:16]

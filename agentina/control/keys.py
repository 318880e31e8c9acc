"""Who this control plane is: its id (the audience of assertions) and the key that signs licenses and assignments.

Both are in one file of the data directory (0600), made on the first start. Agents pin the key at activation, so losing
the file means activating every agent again: it belongs into the backup.
"""

from __future__ import annotations

import base64
import dataclasses
import uuid
from pathlib import Path

import msgspec

from agentina import errors
from agentina.protocol import signing
from agentina.system import files

_FILE = "signing-key"


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """The control plane's identity. ``repr`` shows public parts only."""

    control_plane_id: str
    signing_key: signing.SigningKey
    #: Made just now: this is the first start.
    created: bool


class _Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    control_plane_id: str
    seed: str


def load_or_create(data: Path) -> Keys:
    """Read the identity from ``data``, or make one where there is none.

    Raises:
        AgentinaError: ``INPUT_UNREADABLE`` (damaged; it is never overwritten), ``DISK_FULL``, ``STATE_UNWRITABLE``.

    """
    path = data / _FILE
    try:
        stored = msgspec.json.decode(files.read_bounded(path, limit=4096), type=_Stored)
        return Keys(stored.control_plane_id, signing.SigningKey(base64.b64decode(stored.seed)), created=False)
    except FileNotFoundError:
        pass
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise errors.INPUT_UNREADABLE(where=str(path), problem="it is damaged; restore it from a backup") from error
    keys = Keys(str(uuid.uuid4()), signing.SigningKey.generate(), created=True)
    content = _Stored(
        control_plane_id=keys.control_plane_id, seed=base64.b64encode(keys.signing_key.seed).decode("ascii")
    )
    files.write_atomic(path, msgspec.json.encode(content))
    return keys

"""Who this instance is: its key, its agent id, and the control plane keys it trusts.

One file, ``identity`` in the state directory (0600). It is written in two steps, so that an activation answer lost on
the way is recovered by running install again: first with the new key and the token's hash (``agent_id`` empty), then
complete. The key never leaves the host.
"""

from __future__ import annotations

import base64
from typing import Final

import msgspec

from agentina import errors
from agentina.protocol import licensing, signing
from agentina.system import files, paths

#: Of an Ed25519 key (RFC 8032).
_SEED_BYTES: Final = 32


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the identity file. ``repr`` hides the key."""

    #: Base64 of the 32 secret bytes.
    seed: str
    #: Empty until activation has succeeded.
    agent_id: str = ""
    organization: str = ""
    control_plane_id: str = ""
    #: Keys whose signatures are believed.
    trusted: list[signing.PublicKey] = []
    role: str | None = None
    labels: dict[str, str] = {}
    #: SHA-256 of the token an unfinished activation used, so that only the same token continues it.
    pending_token_sha256: str = ""

    @property
    def key(self) -> signing.SigningKey:
        """The private key."""
        return signing.SigningKey(base64.b64decode(self.seed))

    @property
    def trusted_keys(self) -> dict[str, signing.PublicKey]:
        """The pinned keys by id."""
        return {key.id: key for key in self.trusted}

    def __repr__(self) -> str:
        return f"Identity(agent_id={self.agent_id!r}, organization={self.organization!r})"


def load(instance: paths.InstancePaths) -> Identity | None:
    """The identity, or None when the instance never began activation.

    Raises:
        AgentinaError: ``IDENTITY_DAMAGED`` (it is left where it is: it may hold the only key).
    """
    try:
        return understand(files.read_bounded(instance.identity))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise errors.IDENTITY_DAMAGED(path=str(instance.identity), problem=str(error)) from error


def understand(content: bytes) -> Identity:
    """The identity in a file.

    Raises:
        ValueError: It is none.

    """
    who = msgspec.json.decode(content, type=Identity)
    if len(base64.b64decode(who.seed, validate=True)) != _SEED_BYTES:
        raise ValueError("its key has not the length of a key")
    return who


def save(instance: paths.InstancePaths, identity: Identity) -> None:
    """Write the identity durably."""
    instance.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(instance.identity, msgspec.json.encode(identity))


def save_license(instance: paths.InstancePaths, license_: signing.Signed) -> None:
    """Write the signed license durably."""
    files.write_atomic(instance.license, msgspec.json.encode(license_))


def load_license(instance: paths.InstancePaths, identity: Identity) -> licensing.License:
    """Read and verify the license.

    Raises:
        AgentinaError: ``LICENSE_INVALID`` when it is missing, damaged, forged or another agent's.
    """
    try:
        signed = msgspec.json.decode(files.read_bounded(instance.license), type=signing.Signed)
        license_ = signing.verify_struct(signed, "license", identity.trusted_keys, licensing.License)
    except (FileNotFoundError, msgspec.MsgspecError, errors.AgentinaError) as error:
        raise errors.LICENSE_INVALID(problem=str(error)) from error
    if license_.agent_id != identity.agent_id:
        raise errors.LICENSE_INVALID(problem="it belongs to another agent")
    return license_

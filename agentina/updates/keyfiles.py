"""Files of release keys: the private half encrypted by a passphrase, the public half to hand out.

``NAME.key`` (0600) is JSON with the seed in a libsodium secretbox under a key derived by Argon2id (RFC 9106) from the
passphrase; without a passphrase, for the online key and for tests, it holds the seed itself. ``NAME.pub`` is what a
root is drafted from. Nothing here prints a seed or a passphrase.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import nacl.exceptions
import nacl.pwhash.argon2id
import nacl.secret
import nacl.utils

from agentina import errors
from agentina.protocol import names
from agentina.system import files
from agentina.updates import ed25519

_KIND: Final = "agentina release key"
_LIMIT: Final = 16 << 10
_SEED: Final = 32
#: Argon2id at the strength libsodium names "moderate": 256 MiB and about a second.
_PASSES: Final = nacl.pwhash.argon2id.OPSLIMIT_MODERATE
_MEMORY: Final = nacl.pwhash.argon2id.MEMLIMIT_MODERATE
#: What a file may ask for at most: it was written by somebody else perhaps.
_MOST_PASSES: Final = 10
_MOST_MEMORY: Final = 1 << 30
SHORTEST_PASSPHRASE: Final = 12


class _Encryption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    salt: str
    passes: int
    memory: int


class _Private(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: str
    name: str
    public: str
    secret: str
    encryption: _Encryption | None

    def __repr__(self) -> str:
        return f"_Private(name={self.name!r}, public={self.public!r})"


class _Public(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: str
    name: str
    public: str


def create(directory: Path, name: str, passphrase: str | None) -> tuple[Path, Path]:
    """Make a key; returns its private and its public file.

    Raises:
        AgentinaError: ``STATE_CONFLICT`` (there is one), ``INPUT_INVALID`` (short passphrase), ``NAME_INVALID``,
            ``STATE_UNWRITABLE``, ``DISK_FULL``.

    """
    names.check_key(name)
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    for path in (private, public):
        if path.exists():
            raise errors.STATE_CONFLICT(what=str(path), state="there", expected="a new name")
    signer = ed25519.Signer.generate()
    secret, encryption = signer.seed, None
    if passphrase is not None:
        if len(passphrase) < SHORTEST_PASSPHRASE:
            problem = f"expected at least {SHORTEST_PASSPHRASE} characters"
            raise errors.INPUT_INVALID(where="passphrase", problem=problem)
        salt = nacl.utils.random(nacl.pwhash.argon2id.SALTBYTES)
        encryption = _Encryption(salt=_text(salt), passes=_PASSES, memory=_MEMORY)
        secret = bytes(_box(passphrase, encryption).encrypt(secret))
    shown = signer.public_key.keyval["public"]
    stored = _Private(kind=_KIND, name=name, public=shown, secret=_text(secret), encryption=encryption)
    files.write_atomic(private, msgspec.json.encode(stored))
    files.write_atomic(public, msgspec.json.encode(_Public(kind=_KIND, name=name, public=shown)) + b"\n", mode=0o644)
    return private, public


def is_encrypted(path: Path) -> bool:
    """Whether reading the private key in ``path`` needs a passphrase. Raises like :func:`load`."""
    return _read(path, _Private).encryption is not None


def load(path: Path, passphrase: str | None = None) -> ed25519.Signer:
    """The private key in ``path``.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``RELEASE_KEY_REFUSED`` (wrong or missing passphrase).

    """
    stored = _read(path, _Private)
    try:
        secret = base64.b64decode(stored.secret, validate=True)
        if stored.encryption is not None:
            if passphrase is None:
                raise errors.RELEASE_KEY_REFUSED(key=path.name, problem="it is encrypted and no passphrase was given")
            secret = _box(passphrase, stored.encryption).decrypt(secret)
        signer = ed25519.Signer(secret)
    except (ValueError, TypeError) as error:
        raise _damaged(path) from error
    except nacl.exceptions.CryptoError as error:
        raise errors.RELEASE_KEY_REFUSED(key=path.name, problem="the passphrase is wrong") from error
    if signer.public_key.keyval["public"] != stored.public:
        raise _damaged(path)
    return signer


def load_public(path: Path) -> tuple[str, ed25519.Key]:
    """Name and public key in a ``.pub`` file. Raises ``INPUT_UNREADABLE``."""
    stored = _read(path, _Public)
    try:
        raw = bytes.fromhex(stored.public)
    except ValueError as error:
        raise _damaged(path) from error
    if len(raw) != _SEED:
        raise _damaged(path)
    return stored.name, ed25519.public_key(raw)


_T = TypeVar("_T", _Private, _Public)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        stored = msgspec.json.decode(files.read_bounded(path, limit=_LIMIT), type=kind)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error
    except msgspec.MsgspecError as error:
        raise _damaged(path) from error
    if stored.kind != _KIND:
        raise _damaged(path)
    return stored


def _box(passphrase: str, encryption: _Encryption) -> nacl.secret.SecretBox:
    if not (0 < encryption.passes <= _MOST_PASSES and 0 < encryption.memory <= _MOST_MEMORY):
        raise ValueError("the cost of its passphrase is out of bounds")
    key = nacl.pwhash.argon2id.kdf(
        nacl.secret.SecretBox.KEY_SIZE, passphrase.encode(), base64.b64decode(encryption.salt, validate=True),
        opslimit=encryption.passes, memlimit=encryption.memory,
    )  # fmt: skip
    return nacl.secret.SecretBox(key)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _damaged(path: Path) -> errors.AgentinaError:
    return errors.INPUT_UNREADABLE(where=str(path), problem="it is no release key, or it is damaged")

"""Ed25519 for TUF by libsodium, which is on every host already.

securesystemslib verifies with pyca/cryptography (16 MiB, OpenSSL) or, without it, with a slow pure Python fallback. Our
repositories are signed with Ed25519 only, so libsodium does; where pyca/cryptography is installed the other schemes of
the TUF specification verify as well, and where it is not, a signature of theirs counts as none.
"""

from __future__ import annotations

import hashlib

import nacl.exceptions
import nacl.signing
from securesystemslib import exceptions as signature_errors
from securesystemslib import formats
from securesystemslib import signer as signers

SCHEME = "ed25519"


class Key(signers.SSlibKey):
    """A public key of TUF metadata whose signatures libsodium verifies."""

    def verify_signature(self, signature: signers.Signature, data: bytes) -> None:
        """Raise ``UnverifiedSignatureError`` unless ``signature`` is this key's over ``data``."""
        try:
            verifier = nacl.signing.VerifyKey(bytes.fromhex(self.keyval["public"]))
            verifier.verify(data, bytes.fromhex(signature.signature))
        except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
            raise signature_errors.UnverifiedSignatureError(f"not signed by {self.keyid}") from error


def register() -> None:
    """Let TUF metadata that is parsed from now on use :class:`Key`; safe to repeat."""
    signers.KEY_FOR_TYPE_AND_SCHEME[SCHEME, SCHEME] = Key


class Signer(signers.Signer):
    """A private key for TUF metadata. Its ``repr`` shows only the public id."""

    def __init__(self, seed: bytes) -> None:
        self._key = nacl.signing.SigningKey(seed)
        self._public = public_key(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> Signer:
        """A new random key."""
        return cls(bytes(nacl.signing.SigningKey.generate()))

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: signers.Key, secrets_handler: signers.SecretsHandler | None = None
    ) -> Signer:
        """Not offered: :mod:`agentina.updates.keyfiles` reads our keys."""
        raise NotImplementedError(priv_key_uri, public_key, secrets_handler)

    @property
    def public_key(self) -> Key:
        """The public key."""
        return self._public

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return bytes(self._key)

    def sign(self, payload: bytes) -> signers.Signature:
        """Sign ``payload``."""
        return signers.Signature(self._public.keyid, self._key.sign(payload).signature.hex())

    def __repr__(self) -> str:
        return f"Signer(keyid={self._public.keyid[:16]})"


def public_key(raw: bytes) -> Key:
    """The TUF form of 32 public bytes; its id is the hash that the specification recommends (section 4.2)."""
    value = {"keytype": SCHEME, "scheme": SCHEME, "keyval": {"public": raw.hex()}}
    canonical = formats.encode_canonical(value)
    assert canonical is not None  # it is None only when told to write elsewhere
    keyid = hashlib.sha256(canonical.encode()).hexdigest()
    return Key(keyid, SCHEME, SCHEME, {"public": raw.hex()})

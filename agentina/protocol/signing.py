r"""Ed25519 keys, signed envelopes and agent assertions (RFC 8032 signatures, made by libsodium).

Every signature covers a purpose in front of the content, so that a signature made for one thing never serves another:
``agentina:<purpose>:v1\\n<payload>``. An envelope carries the payload as the exact text that was signed; nothing is
re-encoded before verifying.

An *assertion* is how an agent authenticates each request: a short-lived envelope that names the agent, the control
plane it is for and the time it holds. It is sent as ``Authorization: Agentina <base64url envelope>``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from nacl import exceptions as nacl_exceptions
from nacl import signing as nacl_signing

from agentina import errors

#: Milliseconds an assertion holds.
ASSERTION_LIFETIME_MS: Final = 300_000
#: Milliseconds of clock difference forgiven on either end.
CLOCK_TOLERANCE_MS: Final = 30_000
#: Longest Authorization header read, in characters.
MAX_ASSERTION: Final = 2048

T = TypeVar("T", bound=msgspec.Struct)


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A verifying key as it travels and is pinned."""

    #: The first 16 hexadecimal digits of the SHA-256 of the key.
    id: str
    #: The 32 bytes in base64.
    key: str


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A payload, who signed it, and the signature."""

    key_id: str
    payload: str
    signature: str


class Assertion(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of an agent's assertion. Times are milliseconds since the epoch in the control plane's clock."""

    agent_id: str
    #: The control plane's id: an assertion for one is worthless at another.
    audience: str
    issued_ms: int
    expires_ms: int


class SigningKey:
    """A private Ed25519 key. Its ``repr`` shows only the public id."""

    def __init__(self, seed: bytes) -> None:
        self._key = nacl_signing.SigningKey(seed)
        self.public = public_key(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> SigningKey:
        """A new random key."""
        return cls(bytes(nacl_signing.SigningKey.generate()))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for storing in a 0600 file."""
        return bytes(self._key)

    def sign(self, purpose: str, payload: bytes) -> Signed:
        """Sign UTF-8 ``payload`` for ``purpose``."""
        signature = self._key.sign(_message(purpose, payload)).signature
        return Signed(
            key_id=self.public.id, payload=payload.decode(), signature=base64.b64encode(signature).decode("ascii")
        )

    def sign_struct(self, purpose: str, content: msgspec.Struct) -> Signed:
        """Sign the JSON encoding of ``content``."""
        return self.sign(purpose, msgspec.json.encode(content))

    def __repr__(self) -> str:
        return f"SigningKey(id={self.public.id})"


def public_key(raw: bytes) -> PublicKey:
    """The travelling form of 32 raw public bytes.

    Raises:
        ValueError: It is not 32 bytes long.

    """
    if len(raw) != 32:  # noqa: PLR2004 - RFC 8032: public keys have 32 bytes
        raise ValueError(f"expected 32 bytes, got {len(raw)}")
    return PublicKey(id=hashlib.sha256(raw).hexdigest()[:16], key=base64.b64encode(raw).decode("ascii"))


def parse_public_key(text: str) -> PublicKey:
    """The key in base64 ``text``.

    Raises:
        AgentinaError: ``INPUT_INVALID``.

    """
    try:
        return public_key(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise errors.INPUT_INVALID(where="public_key", problem="expected 32 bytes in base64") from error


def verify(signed: Signed, purpose: str, keys: Mapping[str, PublicKey], what: str) -> bytes:
    """The payload of ``signed`` if one of ``keys`` (by id) signed it for ``purpose``.

    Raises:
        AgentinaError: ``SIGNATURE_INVALID``, naming ``what``.

    """
    key = keys.get(signed.key_id)
    if key is None:
        raise errors.SIGNATURE_INVALID(what=what, problem=f"key {signed.key_id[:16]!r} is not trusted here")
    try:
        payload = signed.payload.encode()
        verifier = nacl_signing.VerifyKey(base64.b64decode(key.key))
        verifier.verify(_message(purpose, payload), base64.b64decode(signed.signature, validate=True))
    except (nacl_exceptions.BadSignatureError, ValueError, TypeError) as error:
        raise errors.SIGNATURE_INVALID(what=what, problem="the content does not match the signature") from error
    return payload


def verify_struct(signed: Signed, purpose: str, keys: Mapping[str, PublicKey], kind: type[T]) -> T:
    """Like :func:`verify`, decoded as ``kind``.

    Raises:
        AgentinaError: ``SIGNATURE_INVALID``, also when the signed content is not a ``kind``.

    """
    payload = verify(signed, purpose, keys, purpose)
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.MsgspecError as error:
        raise errors.SIGNATURE_INVALID(what=purpose, problem=f"signed, but not readable: {error}") from error


def make_assertion(key: SigningKey, *, agent_id: str, audience: str, now_ms: int) -> str:
    """The ``Authorization`` header value for one agent, holding for :data:`ASSERTION_LIFETIME_MS`."""
    content = Assertion(
        agent_id=agent_id, audience=audience, issued_ms=now_ms, expires_ms=now_ms + ASSERTION_LIFETIME_MS
    )
    envelope = msgspec.json.encode(key.sign_struct("assertion", content))
    return "Agentina " + base64.urlsafe_b64encode(envelope).decode("ascii")


def read_assertion(header: str) -> tuple[Signed, Assertion]:
    """The envelope and its *unverified* content; the caller finds the agent's key and calls :func:`check_assertion`.

    Raises:
        AgentinaError: ``ASSERTION_INVALID``.

    """
    scheme, _, token = header.partition(" ")
    if scheme != "Agentina" or len(header) > MAX_ASSERTION:
        raise errors.ASSERTION_INVALID(problem="expected 'Authorization: Agentina <assertion>'")
    try:
        signed = msgspec.json.decode(base64.b64decode(token, altchars=b"-_", validate=True), type=Signed)
        return signed, msgspec.json.decode(signed.payload, type=Assertion)
    except (ValueError, msgspec.MsgspecError) as error:
        raise errors.ASSERTION_INVALID(problem="it cannot be decoded") from error


def check_assertion(signed: Signed, assertion: Assertion, *, key: PublicKey, audience: str, now_ms: int) -> None:
    """Verify signature, audience and time.

    Raises:
        AgentinaError: ``ASSERTION_INVALID`` or ``ASSERTION_EXPIRED`` (with the server's time, so the agent adjusts).

    """
    try:
        verify(signed, "assertion", {key.id: key}, "assertion")
    except errors.AgentinaError as error:
        raise errors.ASSERTION_INVALID(problem="it is not signed by this agent's key") from error
    if assertion.audience != audience:
        raise errors.ASSERTION_INVALID(problem="it is meant for another control plane")
    if assertion.expires_ms - assertion.issued_ms > ASSERTION_LIFETIME_MS:
        raise errors.ASSERTION_INVALID(problem="it holds longer than allowed")
    if not assertion.issued_ms - CLOCK_TOLERANCE_MS <= now_ms <= assertion.expires_ms + CLOCK_TOLERANCE_MS:
        raise errors.ASSERTION_EXPIRED(server_time_ms=now_ms)


def _message(purpose: str, payload: bytes) -> bytes:
    return b"agentina:" + purpose.encode("ascii") + b":v1\n" + payload

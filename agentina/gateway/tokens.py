"""The token by which a task is known to the gateway: worth nothing at another task's door, nor after its task.

Only its hash is kept, compared in constant time; the token itself is in the task's environment and nowhere else. It
authorizes what the task may do anyway, so that a task may print it without harm.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

PREFIX: Final = "agt_"
_BYTES: Final = 24
#: Longest credential looked at, in bytes.
_MAX: Final = 512


def make() -> str:
    """A new token: 192 random bits."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def digest(token: str) -> str:
    """What is kept of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def fits(offered: str | None, kept: str) -> bool:
    """Whether ``offered`` is the token whose digest was kept; takes the same time whatever differs."""
    return hmac.compare_digest(digest(offered or ""), kept) and bool(offered)


def offered_by(header: bytes | None) -> str | None:
    """The token in an ``Authorization`` or ``Proxy-Authorization`` header: ``Bearer TOKEN``, or Basic's password."""
    if header is None or len(header) > _MAX:
        return None
    scheme, _, value = header.decode("latin-1").strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(value.strip(), validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return None
    user, colon, password = text.partition(":")
    # A URL such as http://TOKEN@127.0.0.1:3128 has it as the user.
    return password if colon and password else user

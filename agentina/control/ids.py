"""New ids: short, sortable where order helps, readable over the telephone (Crockford's base32 alphabet)."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_BITS: Final = 48
_RANDOM_BITS: Final = 32


def new_job_id(now_ms: int) -> str:
    """``job_`` and 16 characters: 48 bits of time, so ids sort by age, and 32 random bits."""
    value = (now_ms & ((1 << _TIME_BITS) - 1)) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return "job_" + _base32(value, 16)


def new_id(prefix: str) -> str:
    """``prefix_`` and 12 random characters, for things that are few."""
    return f"{prefix}_{_base32(secrets.randbits(60), 12)}"


def new_secret(prefix: str) -> str:
    """``prefix_`` and 160 random bits: an activation or operator token."""
    return f"{prefix}_{_base32(secrets.randbits(160), 32)}"


def digest(secret: str) -> str:
    """What is stored of a secret. A plain hash is enough for 160 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def split_task_id(task_id: str) -> tuple[str, int]:
    """The job's id and the task's number of a checked task id."""
    job, _, number = task_id.partition(".")
    return job, int(number)


def _base32(value: int, length: int) -> str:
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range((length - 1) * 5, -1, -5))

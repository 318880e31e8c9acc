"""Sizes and durations as people write them (``2GiB``, ``30s``, ``1h30m``) and as the product shows them."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B?)?", re.IGNORECASE)
_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS: Final = (86_400, 3_600, 60, 1)


def parse_size(text: str) -> int:
    """Bytes in ``text``: a number with an optional unit; K, KB and KiB all mean 1024.

    Raises:
        ValueError: It is not a size.

    """
    match = _SIZE.fullmatch(text.strip())
    unit = "" if match is None else (match[2] or "").upper().rstrip("B").rstrip("I")
    size = float("inf") if match is None else float(match[1]) * _FACTORS[unit]
    if size == float("inf"):
        raise ValueError(f"expected a size such as 512MiB or 2GiB, got {text[:80]!r}")
    return int(size)


def parse_duration(text: str) -> float:
    """Seconds in ``text``: a plain number, or days, hours, minutes and seconds in that order (``1h30m``).

    Raises:
        ValueError: It is not a duration.

    """
    stripped = text.strip()
    match = _DURATION.fullmatch(stripped)
    if stripped and match is not None:
        seconds = sum(float(part) * factor for part, factor in zip(match.groups(), _SECONDS, strict=True) if part)
    else:
        try:
            seconds = float(stripped)
        except ValueError:
            seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected a duration such as 30s, 10m or 1h30m, got {text[:80]!r}")
    return seconds


def show_count(number: int, noun: str) -> str:
    """``number`` and ``noun`` for a person, for example ``1 task`` or ``2 tasks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show_size(size: float) -> str:
    """``size`` bytes for a person, for example ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:  # noqa: PLR2004 - the factor between binary units
            return f"{size:.0f} {unit}" if unit == "B" or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_duration(seconds: float) -> str:
    """``seconds`` for a person with its two largest units, for example ``2h 5m`` or ``850 ms``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:  # noqa: PLR2004 - below ten seconds a decimal still tells something
        return f"{seconds:.1f}s"
    rest = int(seconds)
    parts: list[str] = []
    for factor, unit in zip(_SECONDS, "dhms", strict=True):
        count, rest = divmod(rest, factor)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def shorten(text: str, most: int) -> str:
    """``text`` in at most ``most`` characters, one or more; an ellipsis says that some are missing."""
    return text if len(text) <= most else text[: most - 1] + "…"

"""The grammar and order of release versions: a small part of PEP 440, so that they are wheels' versions as well.

``MAJOR.MINOR.PATCH``, then optionally ``aN``, ``bN`` or ``rcN``, then optionally ``.devN``. A version becomes the name
of a directory, so nothing else is accepted.
"""

from __future__ import annotations

import re
from typing import Final

from agentina import errors

_FORM: Final = re.compile(
    r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})(?:(a|b|rc)(0|[1-9]\d{0,5}))?(?:\.dev(0|[1-9]\d{0,5}))?",
    re.ASCII,
)
_FINAL: Final = 1 << 30
Order = tuple[int, int, int, str, int, int]


def check(text: str) -> str:
    """``text`` if it is a version.

    Raises:
        AgentinaError: ``NAME_INVALID``.

    """
    if _FORM.fullmatch(text) is None:
        rule = "expected MAJOR.MINOR.PATCH, then at most aN, bN or rcN, then at most .devN"
        raise errors.NAME_INVALID(what="version", value=text[:60], rule=rule)
    return text


def is_valid(text: str) -> bool:
    """Whether ``text`` is a version."""
    return _FORM.fullmatch(text) is not None


def order(text: str) -> Order:
    """A key that sorts versions from old to new: 1.0.0.dev1 < 1.0.0a1.dev1 < 1.0.0a1 < 1.0.0rc1 < 1.0.0.

    Raises:
        AgentinaError: ``NAME_INVALID``.

    """
    match = _FORM.fullmatch(check(text))
    assert match is not None
    major, minor, patch, phase, number, development = match.groups()
    if phase is None:
        # A development version of the final release comes before all its pre-releases (PEP 440).
        phase = "" if development is not None else "z"
    return (
        int(major), int(minor), int(patch), phase, int(number or 0),
        _FINAL if development is None else int(development),
    )  # fmt: skip


def is_newer(one: str, other: str) -> bool:
    """Whether ``one`` is newer than ``other``."""
    return order(one) > order(other)

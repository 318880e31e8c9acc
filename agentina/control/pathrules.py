"""Which paths of a repository a job claims, and whether two claims meet. Pure.

A claim is a path in the repository, and stands for it and everything below. Its parts may have wildcards as artifacts
do: ``*``, ``?`` and ``[…]`` within a part, ``**`` for any number of parts. So ``src`` and ``src/**`` are the same, and
``docs/*.md`` stands for the pages directly in ``docs``.

Whether two claims meet is judged on the safe side: two parts with wildcards are taken to meet unless their fixed
beginnings or ends differ. Where a file is in both, they meet; where none could be, they may be said to all the same,
and then one job waits needlessly.

What begins with ``/`` is about the host's files and claims nothing.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Final

_WILD: Final = re.compile(r"[*?\[]")
_SSH: Final = re.compile(r"(?:[^@/:]+@)?([^/:]+):(?!//)(.*)")
#: Pairs of claims that are looked at for two jobs; beyond they are taken to meet.
_MOST_PAIRS: Final = 10_000


def repository(address: str) -> str:
    """The same word for the usual ways to write a repository's address: without scheme, user, port and ``.git``."""
    address = address.strip()
    found = _SSH.fullmatch(address)
    if "://" in address:
        rest = address.partition("://")[2]
        host, slash, path = rest.partition("/")
        host = host.rpartition("@")[2].partition(":")[0].lower()
        address = f"{host}{slash}{path}"
    elif found is not None:
        address = f"{found[1].lower()}/{found[2].lstrip('/')}"
    return address.rstrip("/").removesuffix(".git").rstrip("/")


def claimed(patterns: Iterable[str]) -> list[str]:
    """The claims among the paths of a job's scope."""
    return [pattern for pattern in patterns if not pattern.startswith("/") and _parts(pattern) is not None]


def meet(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of claims that meet."""
    if len(one) * len(other) > _MOST_PAIRS:
        return [(one[0], other[0])]
    return [(mine, theirs) for mine in one for theirs in other if overlap(mine, theirs)]


def overlap(one: str, other: str) -> bool:
    """Whether a path could be in both claims."""
    first, second = _parts(one), _parts(other)
    return first is not None and second is not None and _overlap(first, second)


def covers(claims: Iterable[str], path: str) -> bool:
    """Whether a path is in one of the claims."""
    parts = tuple(path.split("/"))
    return any(_covers(own, parts) for own in map(_parts, claims) if own is not None)


def _parts(pattern: str) -> tuple[str, ...] | None:
    """The parts of a claim; None: it leaves the repository."""
    parts = tuple(part for part in pattern.split("/") if part not in {"", "."})
    return None if ".." in parts else parts


@functools.lru_cache(maxsize=4096)
def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    if not one or not other:
        return True  # each stands for everything below it
    if one[0] == "**":
        return _overlap(one[1:], other) or _overlap(one, other[1:])
    if other[0] == "**":
        return _overlap(other, one)
    return _may_be_same(one[0], other[0]) and _overlap(one[1:], other[1:])


def _may_be_same(one: str, other: str) -> bool:
    if not _WILD.search(other):
        one, other = other, one
    if not _WILD.search(one):
        return fnmatch.fnmatchcase(one, other)
    begin, end = _fixed(one), _fixed(other)
    return all(
        mine.startswith(theirs) or theirs.startswith(mine) for mine, theirs in ((begin[0], end[0]), (begin[1], end[1]))
    )


def _fixed(part: str) -> tuple[str, str]:
    """The letters before the first wildcard, and those after the last, from the end."""
    begin = _WILD.split(part, maxsplit=1)[0]
    # What closes a set of letters may be anywhere in it: nothing is said of the end then.
    end = "" if "[" in part else re.split(r"[*?]", part)[-1]
    return begin, end[::-1]


def _covers(claim: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not claim:
        return True
    if claim[0] == "**":
        return _covers(claim[1:], path) or (bool(path) and _covers(claim, path[1:]))
    return bool(path) and fnmatch.fnmatchcase(path[0], claim[0]) and _covers(claim[1:], path[1:])

"""Which paths of a repository a job claims, and whether two claims meet. Pure.

A claim is a path in the repository, and stands for it and everything below. Its parts may have wildcards as artifacts
do: ``*``, ``?`` and ``[…]`` within a part, ``**`` for any number of parts. So ``src`` and ``src/**`` are the same, and
``docs/*.md`` stands for the pages directly in ``docs``.

Two claims meet exactly where a path could be in both. Only of those that are unusually long or many it is said
without a look: then one job may wait needlessly, and none runs where it must not.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import posixpath
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_WILD: Final = re.compile(r"[*?\[]")
#: What one letter of a path is compared with, as fnmatch reads patterns.
_LETTER: Final = re.compile(r"\[!?+\]?+[^\]]*\]|.", re.DOTALL)
_SSH: Final = re.compile(r"(?:[^@/]*@)?(\[[^\]/]+\]|[^:/@]+):(?!//)(.*)")
_PORT: Final = re.compile(r":\d*\Z")
#: Pairs of claims that are looked at for two jobs, and pairs of parts or letters for two claims; beyond they are taken
#: to meet.
_MOST_PAIRS: Final = 10_000


def repository(address: str) -> str:
    """The same word for the usual ways to write a repository's address.

    Without scheme, user, port and ``.git``. Whether letters are small or capital matters on this host only: the great
    servers of repositories take no notice of it.
    """
    address = address.strip()
    scheme, mark, rest = address.partition("://")
    found = _SSH.fullmatch(address)
    host, path = "", address
    if mark:
        authority, _, path = rest.partition("/")
        host, path = _PORT.sub("", authority.rpartition("@")[2]), urllib.parse.unquote(path)
    elif found is not None:
        host, path = found[1], found[2]
    path = posixpath.normpath("/" + path.lstrip("/")).removesuffix(".git").rstrip("/")
    return path if not host or scheme == "file" else f"{host.rstrip('.')}{path}".lower()


def claimed(patterns: Iterable[str]) -> list[str]:
    """The claims among the paths of a job's scope: those inside the repository."""
    return [pattern for pattern in patterns if not pattern.startswith("/") and ".." not in pattern.split("/")]


def meet(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pairs of claims that meet."""
    if len(one) * len(other) > _MOST_PAIRS:
        yield one[0], other[0]
        return
    for mine, theirs in itertools.product(one, other):
        if overlap(mine, theirs):
            yield mine, theirs


@functools.lru_cache(maxsize=16_384)
def overlap(one: str, other: str) -> bool:
    """Whether a path could be in both claims."""
    return _common(_parts(one), _parts(other), many="**", is_same=_may_be_same)


class Index(Generic[T]):
    """Claims of many, of which those that meet one are found without a look at all."""

    def __init__(self) -> None:
        #: By the parts before the first wildcard: who claims just there, and who claims something below.
        self._there: dict[tuple[str, ...], list[tuple[str, T]]] = {}
        self._below: dict[tuple[str, ...], list[tuple[str, T]]] = {}

    def add(self, claims: Iterable[str], owner: T) -> None:
        """Take claims in."""
        for claim in claims:
            begin = _plain(claim)
            self._there.setdefault(begin, []).append((claim, owner))
            for size in range(len(begin)):
                self._below.setdefault(begin[:size], []).append((claim, owner))

    def find(self, claims: Iterable[str]) -> Iterator[T]:
        """Whose claims meet one of these; some are named several times."""
        for claim in claims:
            begin = _plain(claim)
            near = [self._below.get(begin, [])]
            near += [self._there.get(begin[:size], []) for size in range(len(begin) + 1)]
            for other, owner in itertools.chain.from_iterable(near):
                if overlap(claim, other):
                    yield owner


def covers(claims: Iterable[str], path: str) -> bool:
    """Whether a path is in one of the claims."""
    parts = path.split("/")
    return any(_common(_parts(claim), parts, many="**", is_same=_matches) for claim in claims)


@functools.lru_cache(maxsize=16_384)
def _parts(claim: str) -> tuple[str, ...]:
    """The parts of a claim, with those of everything below it."""
    return (*(part for part in claim.split("/") if part not in {"", "."}), "**")


@functools.lru_cache(maxsize=16_384)
def _plain(claim: str) -> tuple[str, ...]:
    """The parts of a claim before the first with a wildcard."""
    return tuple(itertools.takewhile(lambda part: not _WILD.search(part), _parts(claim)))


def _common(one: Sequence[str], other: Sequence[str], *, many: str, is_same: Callable[[str, str], bool]) -> bool:
    """Whether something fits both patterns, in which ``many`` stands for any number of tokens, also for none."""
    if len(one) * len(other) > _MOST_PAIRS:
        return True
    # For each beginning of ``other``: whether something fits that and the beginning of ``one`` looked at so far.
    fits = [True]
    for theirs in other:
        fits.append(fits[-1] and theirs == many)
    for mine in one:
        before, fits = fits, [fits[0] and mine == many]
        for number, theirs in enumerate(other):
            if many in {mine, theirs}:
                fits.append(fits[number] or before[number + 1])
            else:
                fits.append(before[number] and is_same(mine, theirs))
        if not any(fits):
            return False
    return fits[-1]


def _matches(pattern: str, name: str) -> bool:
    """Whether a part of a claim fits a plain name."""
    return pattern == name or (bool(_WILD.search(pattern)) and fnmatch.fnmatchcase(name, pattern))


def _may_be_same(one: str, other: str) -> bool:
    """Whether a name could fit both parts."""
    if not _WILD.search(other):
        return _matches(one, other)
    if not _WILD.search(one):
        return _matches(other, one)
    return _common(_LETTER.findall(one), _LETTER.findall(other), many="*", is_same=_may_be_letter)


def _may_be_letter(one: str, other: str) -> bool:
    """Whether a letter could fit both: if any does, one named in them does, or one beside such a letter."""
    codes = {ord(letter) + beside for letter in one + other for beside in (-1, 0, 1)}
    near = {chr(code) for code in codes if 0 < code <= sys.maxunicode} - {"/"}
    return any(fnmatch.fnmatchcase(letter, one) and fnmatch.fnmatchcase(letter, other) for letter in near)

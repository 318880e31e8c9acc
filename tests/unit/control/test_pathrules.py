from __future__ import annotations

import fnmatch
import itertools
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentina.control import pathrules

PART = st.text("ab.*?", min_size=1, max_size=3) | st.sampled_from(["**", "[ab]", "[!a]b", "a*", "*.b"])
CLAIM = st.lists(PART, min_size=1, max_size=4).map("/".join)
PATH = st.lists(
    st.text("ab.", min_size=1, max_size=3).filter(lambda part: part not in {".", ".."}), min_size=1, max_size=4
).map("/".join)


@pytest.mark.parametrize(
    ("one", "other", "do_meet"),
    [
        ("src", "src", True), ("src", "src/a.py", True), ("src/a.py", "src/b.py", False), ("src", "srcs", False),
        ("src/*.py", "src/a.py", True), ("src/*.py", "src/a.c", False), ("src/*.py", "src/*.c", False),
        ("src/a*", "src/b*", False), ("src/a*", "src/*b", True), ("**/test_*", "src/x/test_a.py", True),
        ("**/*.md", "docs/*.py", True), ("docs/**", "docs", True), ("docs/**", "src/**", False), ("*", "src/a", True),
        ("a/**/z", "a/z", True), ("a/**/z", "b/z", False), ("./src/", "src", True), ("", "x", True),
        ("[ab].py", "c.py", False), ("[ab].py", "[cd].py", False), ("a*bx", "*ax", False),
        ("[!a]", "[!b]", True), ("[a-c]x", "[c-e]?", True),
    ],
)  # fmt: skip
def test_claims_meet(one: str, other: str, do_meet: bool) -> None:  # noqa: FBT001
    assert pathrules.overlap(one, other) is do_meet
    assert pathrules.overlap(other, one) is do_meet


@given(CLAIM, CLAIM, PATH)
@example("**/a", "a", "a/b")
@example("a*b", "ab*", "ab")
def test_claims_that_share_a_path_meet(one: str, other: str, path: str) -> None:
    """The safe side: whatever both cover is never given to two jobs."""
    if pathrules.covers([one], path) and pathrules.covers([other], path):
        assert pathrules.overlap(one, other)


#: Every name of up to four of three letters, and every path of up to six parts of two names.
NAMES = ["".join(letters) for size in range(1, 5) for letters in itertools.product("abc", repeat=size)]
PATHS = ["/".join(parts) for size in range(1, 7) for parts in itertools.product("ab", repeat=size)]


@given(*[st.lists(st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "[b-c]"]), min_size=1, max_size=2)] * 2)
def test_parts_meet_exactly_where_a_name_fits_both(one: list[str], other: list[str]) -> None:
    first, second = "".join(one), "".join(other)
    fit = any(fnmatch.fnmatchcase(name, first) and fnmatch.fnmatchcase(name, second) for name in NAMES)
    # "**" is no part of its own here.
    assert pathrules.overlap(first.replace("**", "*"), second.replace("**", "*")) == fit


def by_definition(claim: list[str]) -> re.Pattern[str]:
    parts = {"**": "(?:[^/]+/)*", "*": "[^/]+/"}
    return re.compile("".join(parts.get(part, f"{part}/") for part in claim))


@given(*[st.lists(st.sampled_from(["a", "b", "*", "**"]), max_size=3)] * 2)
def test_claims_meet_exactly_where_a_path_is_in_both(one: list[str], other: list[str]) -> None:
    first, second = by_definition(one), by_definition(other)
    covered = [path for path in PATHS if first.match(f"{path}/")]
    assert covered == [path for path in PATHS if pathrules.covers(["/".join(one)], path)]
    assert pathrules.overlap("/".join(one), "/".join(other)) == any(second.match(f"{path}/") for path in covered)


@pytest.mark.parametrize("part", ["**/a", "*a", "[a-z]*"])
def test_longest_claims_are_judged_at_once(part: str) -> None:
    """What takes too long to tell is taken to meet."""
    many, other = "/".join([part] * 500)[:1024], "/".join(["**/b"] * 200)
    began = time.process_time()
    assert pathrules.overlap(many, other)
    assert pathrules.overlap(part.replace("/", "") * 100, "*b" * 100)
    pathrules.covers([many], "a/" * 500)
    assert time.process_time() - began < 5


@given(CLAIM, CLAIM)
def test_meeting_is_mutual(one: str, other: str) -> None:
    assert pathrules.overlap(one, other) == pathrules.overlap(other, one)


@given(PATH, PATH)
def test_plain_paths_meet_exactly_where_one_is_above_the_other(one: str, other: str) -> None:
    above = f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
    assert pathrules.overlap(one, other) == above


@given(CLAIM, PATH, PATH)
def test_claim_covers_everything_below_what_it_covers(claim: str, path: str, below: str) -> None:
    if pathrules.covers([claim], path):
        assert pathrules.covers([claim], f"{path}/{below}")


@pytest.mark.parametrize(
    "address",
    [
        "https://git.example.com/team/app", "https://git.example.com/team/app.git", "https://git.example.com/team/app/",
        "https://me:secret@Git.Example.com:443/team/app.git", "ssh://git@git.example.com/team/app.git",
        "git@git.example.com:team/app.git", "git.example.com:team/app", "git+ssh://git@git.example.com:22/team//app.git/",
        "HTTPS://GIT.EXAMPLE.COM./Team/App.git", "https://git.example.com/team/%61pp", "git@git.example.com:/team/app",
    ],
)  # fmt: skip
def test_repository_has_one_name(address: str) -> None:
    assert pathrules.repository(address) == "git.example.com/team/app"


@pytest.mark.parametrize(
    "address",
    ["/srv/git/App", "/srv/git/App.git", "/srv/git//x/../App/.git", "file:///srv/git/App/", "file://localhost/srv/git/App"],
)  # fmt: skip
def test_repository_on_the_host_is_its_path(address: str) -> None:
    assert pathrules.repository(address) == "/srv/git/App"


@pytest.mark.parametrize("address", ["https://[::1]:8443/team/app", "git@[::1]:team/app"])
def test_repository_at_an_address_in_brackets(address: str) -> None:
    assert pathrules.repository(address) == "[::1]/team/app"


@given(st.text(max_size=40))
def test_name_of_a_repository_is_its_own(address: str) -> None:
    """Whatever it is, it has a name."""
    assert isinstance(pathrules.repository(address), str)


def test_paths_outside_the_repository_claim_nothing() -> None:
    assert pathrules.claimed(["/etc", "src", "../x", "a/**"]) == ["src", "a/**"]


def test_very_many_claims_are_taken_to_meet() -> None:
    many = [f"a{number}" for number in range(256)]
    assert list(pathrules.meet(many, ["b"])) == []
    assert list(pathrules.meet(many, [f"b{number}" for number in range(256)])) == [("a0", "b0")]

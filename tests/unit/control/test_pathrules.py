from __future__ import annotations

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
        ("../src", "src", False), ("[ab].py", "c.py", False), ("[ab].py", "[cd].py", True),
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
        "git@git.example.com:team/app.git", "git.example.com:team/app",
    ],
)  # fmt: skip
def test_repository_has_one_name(address: str) -> None:
    assert pathrules.repository(address) == "git.example.com/team/app"


def test_repository_on_the_host_is_its_path() -> None:
    assert pathrules.repository("/srv/git/app.git") == "/srv/git/app"
    assert pathrules.repository("file:///srv/git/app.git") == "/srv/git/app"


def test_paths_of_the_host_claim_nothing() -> None:
    assert pathrules.claimed(["/etc", "src", "../x", "a/**"]) == ["src", "a/**"]


def test_very_many_claims_are_taken_to_meet() -> None:
    many = [f"a{number}" for number in range(256)]
    assert pathrules.meet(many, ["b"]) == []
    assert pathrules.meet(many, [f"b{number}" for number in range(256)]) == [("a0", "b0")]

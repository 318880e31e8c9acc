from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.updates import versions

NUMBER = st.integers(0, 99).map(str)
SUFFIX = st.just("") | st.builds("{}{}".format, st.sampled_from(["a", "b", "rc"]), NUMBER)
DEV = st.just("") | st.builds(".dev{}".format, NUMBER)
VERSION = st.builds("{}.{}.{}{}{}".format, NUMBER, NUMBER, NUMBER, SUFFIX, DEV)


def test_order_is_that_of_pep_440() -> None:
    ordered = [
        "0.9.9", "1.0.0.dev1", "1.0.0.dev2", "1.0.0a1.dev1", "1.0.0a1", "1.0.0a2", "1.0.0b1", "1.0.0rc1", "1.0.0rc10",
        "1.0.0", "1.0.1.dev0", "1.0.10", "1.2.0", "1.10.0",
    ]  # fmt: skip
    assert sorted({*ordered}, key=versions.order) == ordered


@given(VERSION, VERSION)
def test_order_is_total(one: str, other: str) -> None:
    assert (versions.order(one) == versions.order(other)) == (one == other)
    assert versions.is_newer(one, other) + versions.is_newer(other, one) == (one != other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.0",
        "v1.0.0",
        "1.0.0 ",
        "1.0.0\n",
        "01.0.0",
        "1.0.0-1",
        "../x",
        ".",
        "1.0.0a",
        "\N{FULLWIDTH DIGIT ONE}.0.0",
        "1.0.0.0",
    ],
)
def test_what_is_no_version_is_refused(text: str) -> None:
    assert not versions.is_valid(text)
    with pytest.raises(errors.AgentinaError) as caught:
        versions.check(text)
    assert caught.value.entry is errors.NAME_INVALID


@given(st.text(max_size=30))
def test_any_text_is_judged_without_fault(text: str) -> None:
    if versions.is_valid(text):
        assert "/" not in text
        assert text.strip(".") == text
        versions.order(text)

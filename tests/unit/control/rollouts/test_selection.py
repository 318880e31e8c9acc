from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.control.rollouts import selection

NAME = st.sampled_from(["a", "b"])
LABELS = st.dictionaries(st.sampled_from(["zone", "size"]), NAME)
SELECTIONS = st.builds(
    selection.Selection, organization=st.none() | NAME, role=st.none() | NAME, channel=st.none() | NAME, labels=LABELS
)


AGENTS = st.fixed_dictionaries({"organization": NAME, "role": st.none() | NAME, "channel": NAME, "labels": LABELS})


@given(SELECTIONS, SELECTIONS, AGENTS)
def test_what_two_choose_is_seen_beforehand(
    one: selection.Selection, other: selection.Selection, agent: dict[str, Any]
) -> None:
    assert one.overlaps(other) or not (one.matches(**agent) and other.matches(**agent))
    assert one.overlaps(other) == other.overlaps(one)
    assert one.overlaps(one)


@given(SELECTIONS)
def test_what_is_shown_can_be_written(one: selection.Selection) -> None:
    channel = "dev" if one.channel == "a" else "beta" if one.channel == "b" else None
    one = selection.Selection(organization=one.organization, role=one.role, channel=channel, labels=one.labels)
    terms = [] if one.is_open() else one.words().split(",")
    assert selection.parse(terms) == one


@pytest.mark.parametrize(
    "terms",
    [
        ["role"],
        ["role=a", "role=b"],
        ["hostname=a"],
        ["channel=nightly"],
        ["role=A B"],
        ["label.=a"],
        ["label.a=b c"],
        [""],
    ],
)
def test_what_is_no_selection_is_refused(terms: list[str]) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        selection.parse(terms)
    assert caught.value.code in {"INPUT_INVALID", "NAME_INVALID"}


@pytest.mark.parametrize(
    ("running", "is_newer"), [("1.1.0", True), ("1.0.0", False), ("0.9.0", False), ("", False), ("simulated", False)]
)
def test_only_a_known_newer_version_is_newer(running: str, is_newer: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert selection.is_newer(running, "1.0.0") is is_newer

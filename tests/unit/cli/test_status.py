from __future__ import annotations

import pytest

from agentina.cli import status


@pytest.mark.parametrize(
    ("one", "shown"),
    [
        ({}, ""),
        ({"update_available": "0.5.0"}, " (0.5.0 is available)"),
        ({"update_available": "0.5.0", "update_title": "Faster starts"}, " (0.5.0 is available: Faster starts)"),
        (
            {"update_available": "0.5.0", "update_title": "\x1b[2Jgone"},
            " (0.5.0 is available: \N{REPLACEMENT CHARACTER}[2Jgone)",
        ),
    ],
)
def test_newer_release_is_told_with_its_title_and_nothing_for_the_terminal(one: dict[str, str], shown: str) -> None:
    assert status._update(one) == shown

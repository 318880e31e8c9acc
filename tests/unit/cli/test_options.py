from __future__ import annotations

import pytest

from agentina import errors
from agentina.cli import main


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("token create --expires 0", "'--expires': expected at least 1.0s and at most 365d, got '0'"),
        ("token create --expires 99999d", "'--expires': expected at least 1.0s and at most 365d, got '99999d'"),
        ("release keys root --repository r --lifetime 0", "'--lifetime': expected at least 1d, got '0'"),
        ("rollout start 1.4.0 --soak 1000d", "'--soak': expected at least 0 ms and at most 365d"),
        ("rollout start 1.4.0 --batch 101%", "'--batch': expected a share such as 25%, from 0.1% to 100%, got '101%'"),
        ("rollout start 1.4.0 --tolerance nan", "'--tolerance': expected a share such as 25%, from 0% to 50%"),
        ("organization set a --offline-grace-hours nan", "'--offline-grace-hours': 'nan' is no number"),
        ("organization set a --offline-grace-hours inf", "'--offline-grace-hours': "),
        ("budget set --organization a --cost 1e30", "'--cost': '1e30' is more than a budget can be"),
    ],
)
def test_bounds_are_told_with_the_option(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(line.split()) == errors.Exit.USAGE
    shown = capsys.readouterr().err
    assert f"error: Invalid value for {said}" in shown
    assert "code: USAGE" in shown

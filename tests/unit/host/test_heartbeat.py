from __future__ import annotations

import pytest

from agentina.host import heartbeat
from agentina.protocol import wire


@pytest.mark.parametrize(("lease", "margin"), [(180.0, 18.0), (50.0, 5.0), (20.0, 5.0), (600.0, 60.0)])
def test_margin_is_a_tenth_and_at_least_five_seconds(lease: float, margin: float) -> None:
    assert heartbeat.margin(lease) == pytest.approx(margin)
    assert heartbeat.deadline(1000.0, lease) == pytest.approx(1000.0 + lease - margin)


@pytest.mark.parametrize(
    ("beat", "lease", "holding", "expected"),
    [
        (60.0, 180.0, False, 60.0),
        (60.0, 180.0, True, 60.0),
        (600.0, 180.0, True, 60.0),
        (600.0, 180.0, False, 600.0),
        (5.0, 180.0, True, 5.0),
        (0.0, 180.0, False, 0.2),
        (1e9, 1e12, True, 3600.0),
    ],
)
def test_interval_is_a_third_of_the_lease_while_tasks_are_held(
    beat: float,
    lease: float,
    holding: bool,  # noqa: FBT001
    expected: float,
) -> None:
    directives = wire.Directives(heartbeat_seconds=beat, lease_seconds=lease)
    assert heartbeat.interval(directives, holding=holding) == pytest.approx(expected)

from __future__ import annotations

from pathlib import Path

import pytest

from agentina import errors
from agentina.control import config
from agentina.host import heartbeat
from agentina.protocol import wire


@pytest.mark.parametrize("seconds", [0.0, 3.0, wire.MIN_LEASE_SECONDS - 0.1])
def test_lease_that_would_cost_work_is_refused(seconds: float) -> None:
    with pytest.raises(errors.AgentinaError, match="INPUT_INVALID") as caught:
        config.Settings(data=Path("/x"), lease_seconds=seconds)
    assert "at least 15s" in caught.value.message


def test_heartbeats_without_a_time_between_them_are_refused() -> None:
    with pytest.raises(errors.AgentinaError, match="heartbeat: expected a time"):
        config.Settings(data=Path("/x"), heartbeat_seconds=0)


def test_shortest_lease_survives_one_lost_heartbeat() -> None:
    config.Settings(data=Path("/x"), lease_seconds=wire.MIN_LEASE_SECONDS)
    directives = wire.Directives(lease_seconds=wire.MIN_LEASE_SECONDS)
    two_heartbeats = 2 * heartbeat.interval(directives, holding=True)
    assert two_heartbeats <= heartbeat.deadline(0.0, wire.MIN_LEASE_SECONDS)

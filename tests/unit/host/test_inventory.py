from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.executors.contract import Condition
from agentina.host.work import inventory
from agentina.host.work.state import Found
from agentina.protocol.states import Reason


def evidence(**changes: Any) -> inventory.Evidence:
    fields = {
        "held": True, "outbox_fresh": False, "final": False, "directory": True, "record": True, "same_boot": True,
        "collected": False, "condition": Condition.UNSTARTED, **changes,
    }  # fmt: skip
    return inventory.Evidence(**fields)


@pytest.mark.parametrize(
    ("changes", "found", "lost"),
    [
        ({"directory": False, "record": True}, Found.LOST, Reason.RECORD_DAMAGED),
        ({"directory": False, "same_boot": False}, Found.LOST, Reason.HOST_RESTARTED),
        ({"record": False}, Found.LOST, Reason.RECORD_DAMAGED),
        ({"held": False}, None, None),
        ({}, Found.UNSTARTED, None),
        ({"condition": Condition.RUNNING}, Found.RUNNING, None),
        ({"condition": Condition.ENDED}, Found.ENDED, None),
        ({"condition": Condition.VANISHED}, Found.LOST, Reason.SUPERVISOR_DIED),
        ({"condition": Condition.VANISHED, "same_boot": False}, Found.LOST, Reason.HOST_RESTARTED),
        ({"same_boot": False}, Found.LOST, Reason.HOST_RESTARTED),
        ({"condition": Condition.ENDED, "same_boot": False}, Found.ENDED, None),
        ({"condition": Condition.ENDED, "collected": True}, Found.COLLECTED, None),
        ({"final": True, "directory": False}, Found.REPORTED, None),
        ({"held": False, "outbox_fresh": True, "condition": Condition.ENDED}, Found.ENDED, None),
        ({"held": False, "condition": Condition.RUNNING}, Found.RUNNING, None),
        ({"held": False, "condition": Condition.ENDED}, None, None),
        ({"record": False, "condition": Condition.RUNNING}, Found.RUNNING, Reason.RECORD_DAMAGED),
    ],
)
def test_each_line_of_the_crash_table(changes: dict[str, Any], found: Found | None, lost: Reason | None) -> None:
    assert inventory.classify(evidence(**changes)) == inventory.Finding(found, lost)


BOOLEANS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("held", "outbox_fresh", "final", "directory", "record", "same_boot", "collected")}
)


@given(BOOLEANS, st.sampled_from(list(Condition)))
def test_nothing_that_may_have_run_is_started_or_deleted(flags: dict[str, bool], condition: Condition) -> None:
    finding = inventory.classify(evidence(**flags, condition=condition))
    if condition is not Condition.UNSTARTED or not flags["same_boot"]:
        assert finding.found is not Found.UNSTARTED
    if condition is Condition.RUNNING and flags["directory"]:
        assert finding.found is not None
    if flags["held"]:
        assert finding.found is not None, "an accepted task is never dropped silently"

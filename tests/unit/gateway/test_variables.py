from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from agentina.gateway import variables


@given(st.text(max_size=60))
def test_an_address_is_loopback_and_always_the_same(task_id: str) -> None:
    found = ipaddress.ip_address(variables.address(task_id))
    assert found.is_loopback
    assert found not in ipaddress.ip_network("127.0.0.0/16")
    assert variables.address(task_id) == str(found)


def test_tasks_do_not_meet() -> None:
    assert len({variables.address(f"job_{number:016d}.1") for number in range(500)}) > 495


def test_tools_do_not_use_the_proxy_to_reach_the_gateway() -> None:
    told = variables.tell("task_1", "agt_x")
    host = variables.address("task_1")
    assert host in told["NO_PROXY"].split(",")
    assert told["ANTHROPIC_BASE_URL"] == f"http://{host}:8377/anthropic"
    assert told["https_proxy"] == f"http://task:agt_x@{host}:8377"

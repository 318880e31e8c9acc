"""Which of several orders to end a task stands."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from agentina.executors.contract import Order, StopReason

REASONS = st.sampled_from([StopReason.CANCELED, StopReason.HOST_SHUTDOWN, StopReason.LEASE_EXPIRED])
GRACES = st.none() | st.floats(0, 600)


@given(st.lists(st.builds(Order, reason=REASONS | st.just(StopReason.FINISHED), grace_seconds=GRACES), min_size=1))
def test_first_reason_to_end_the_task_and_the_shortest_grace_stand(orders: list[Order]) -> None:
    stands = functools.reduce(lambda before, order: order.following(before), orders)
    ends = [order.reason for order in orders if order.reason is not StopReason.FINISHED]
    assert stands.reason is (ends[0] if ends else StopReason.FINISHED)
    graces = [order.grace_seconds for order in orders if order.grace_seconds is not None]
    assert stands.grace_seconds == min(graces, default=None)


def test_only_order_stands_as_it_is() -> None:
    order = Order(reason=StopReason.CANCELED, grace_seconds=2.0)
    assert order.following(None) is order

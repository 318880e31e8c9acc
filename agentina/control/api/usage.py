"""Routes of the operator API about what models were used for."""

from __future__ import annotations

from typing import Final

from agentina.control.api import routing
from agentina.control.services import usage
from agentina.protocol import budgets

_MAX_ROWS: Final = 10_000


async def report(call: routing.Call) -> budgets.UsageReport:
    """Usage of some days in groups."""
    return usage.report(
        call.control, by=call.query["by"], since=call.query["since"], until=call.query["until"],
        organization=call.query["organization"], limit=call.query["limit"],
    )  # fmt: skip


def routes() -> list[routing.Route]:
    """The table's part."""
    query = (
        routing.Query(name="by", kind=str, default="organization"),
        routing.Query(name="since", kind=str),
        routing.Query(name="until", kind=str),
        routing.Query(name="organization", kind=str),
        routing.Query(name="limit", kind=int, default=1000, minimum=1, maximum=_MAX_ROWS),
    )
    return [
        routing.Route(
            method="GET", path="/v1/usage", handler=report, summary="What models were used for, and what it cost",
            auth="viewer", answer=budgets.UsageReport, query=query,
        )
    ]  # fmt: skip

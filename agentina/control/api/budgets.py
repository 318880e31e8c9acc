"""Routes about budgets: for operators, and for hosts that ask what they may use."""

from __future__ import annotations

from agentina.control.api import routing
from agentina.control.services import budgets, shares
from agentina.protocol import budgets as protocol


async def ask(call: routing.Call) -> protocol.Answer:
    """What a host may use today."""
    return await shares.answer(call.control, call.caller, call.body)


async def list_budgets(call: routing.Call) -> protocol.BudgetList:
    """All daily budgets."""
    return protocol.BudgetList(budgets=budgets.listed(call.control))


async def show_budget(call: routing.Call) -> protocol.BudgetView:
    """One budget, and what is used of it."""
    return budgets.view(call.control, call.parameters["scope"], call.parameters["name"])


async def set_budget(call: routing.Call) -> protocol.BudgetView:
    """Set limits."""
    scope, name = call.parameters["scope"], call.parameters["name"]
    return await budgets.replace(call.control, scope, name, call.body, actor=call.actor)


async def raise_budget(call: routing.Call) -> protocol.BudgetView:
    """Add to limits."""
    scope, name = call.parameters["scope"], call.parameters["name"]
    return await budgets.add(call.control, scope, name, call.body, actor=call.actor)


async def remove_budget(call: routing.Call) -> None:
    """Take a daily budget away."""
    await budgets.remove(call.control, call.parameters["scope"], call.parameters["name"], actor=call.actor)


def routes() -> list[routing.Route]:
    """The table's part."""
    one = "/v1/budgets/{scope}/{name}"
    return [
        routing.Route(
            method="POST", path="/v1/agent/budgets", handler=ask, summary="What a host may use today", auth="agent",
            request=protocol.Ask, answer=protocol.Answer, body_limit=64 << 10,
        ),
        routing.Route(
            method="GET", path="/v1/budgets", handler=list_budgets, summary="Budgets of organizations and agents",
            auth="viewer", answer=protocol.BudgetList,
        ),
        routing.Route(
            method="GET", path=one, handler=show_budget, auth="viewer", answer=protocol.BudgetView,
            summary="The budget of an organization, agent or job, and what is used of it",
        ),
        routing.Route(
            method="PUT", path=one, handler=set_budget, summary="Set the limits of a budget", auth="operator",
            request=protocol.BudgetSet, answer=protocol.BudgetView, act="budget.set",
        ),
        routing.Route(
            method="POST", path=one + "/raise", handler=raise_budget, auth="operator", request=protocol.BudgetRaise,
            answer=protocol.BudgetView, act="budget.raise",
            summary="Add to a budget; calls that are held go on where it lets them",
        ),
        routing.Route(
            method="DELETE", path=one, handler=remove_budget, summary="Take a daily budget away", auth="operator",
            status=204, act="budget.remove",
        ),
    ]  # fmt: skip

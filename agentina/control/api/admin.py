"""Routes of the operator API about agents, tokens, organizations, operators and audit, and the public ones."""

from __future__ import annotations

from typing import Any

import agentina
from agentina.control.api import routing
from agentina.control.services import administration, gauges, operators, views
from agentina.control.store import agents, audit, engine, registry
from agentina.protocol import api, names

_MAX_PAGE = 1000


async def create_tokens(call: routing.Call) -> api.TokensCreated:
    """Make activation tokens; their text is shown this once."""
    return await administration.create_tokens(call.control, call.body, actor=call.actor)


async def list_tokens(call: routing.Call) -> api.TokenList:
    """List the newest tokens."""
    now_ms = call.control.clock.wall_ms()
    rows = call.control.store.read(lambda tx: registry.tokens(tx, limit=_MAX_PAGE))
    return api.TokenList(tokens=[views.token(row, now_ms) for row in rows])


async def revoke_token(call: routing.Call) -> api.TokenView:
    """Take an unused token back."""
    row = await administration.revoke_token(call.control, call.parameters["token"], actor=call.actor)
    return views.token(row, call.control.clock.wall_ms())


async def list_agents(call: routing.Call) -> api.AgentList:
    """List all agents."""
    return api.AgentList(agents=[views.agent_view(call.control, agent) for agent in call.control.fleet.agents.values()])


async def show_agent(call: routing.Call) -> api.AgentView:
    """Show one agent."""
    return views.agent_view(call.control, administration.find_agent(call.control, call.parameters["agent"]))


async def _act(call: routing.Call, verb: str, reason: str) -> api.AgentView:
    agent = await administration.act_on_agent(
        call.control, call.parameters["agent"], verb, reason=reason, actor=call.actor
    )
    return views.agent_view(call.control, agent)


async def remove_agent(call: routing.Call) -> None:
    """Forget an agent."""
    await administration.remove_agent(call.control, call.parameters["agent"], actor=call.actor)


async def list_audit(call: routing.Call) -> api.AuditList:
    """A page of audit records."""
    query = call.query
    wanted = audit.Filter(
        actor=query["actor"], action=query["action"], subject=query["subject"], since_ms=query["since"]
    )
    rows, following = call.control.store.read(
        lambda tx: audit.page(tx, wanted, after=query["after"], before=query["before"], limit=query["limit"])
    )
    return api.AuditList(entries=[views.audit_entry(row) for row in rows], next=following)


async def verify_audit(call: routing.Call) -> api.AuditVerified:
    """Check the whole hash chain."""
    broken = await audit.first_broken(call.control.store)
    return api.AuditVerified(intact=broken is None, first_broken=broken)


async def list_organizations(call: routing.Call) -> api.OrganizationList:
    """List them by name."""

    def read(tx: engine.Transaction) -> list[api.OrganizationView]:
        return [views.organization(row, agents.count(tx, row["id"])) for row in registry.organizations(tx)]

    return api.OrganizationList(organizations=call.control.store.read(read))


async def show_organization(call: routing.Call) -> api.OrganizationView:
    """Show one organization."""
    name = names.check_organization(call.parameters["name"])
    return _organization(call, call.control.store.read(lambda tx: registry.get_organization(tx, name)))


async def update_organization(call: routing.Call) -> api.OrganizationView:
    """Create or change one."""
    name = call.parameters["name"]
    return _organization(
        call, await administration.update_organization(call.control, name, call.body, actor=call.actor)
    )


def _organization(call: routing.Call, row: engine.Row) -> api.OrganizationView:
    return views.organization(row, call.control.store.read(lambda tx: agents.count(tx, row["id"])))


async def create_operator(call: routing.Call) -> api.OperatorToken:
    """Let somebody new in."""
    return await operators.create(call.control, call.body, actor=call.actor)


async def list_operators(call: routing.Call) -> api.OperatorList:
    """List all, revoked ones too."""
    return api.OperatorList(operators=[views.operator(row) for row in call.control.store.read(registry.operators)])


async def renew_operator(call: routing.Call) -> api.OperatorToken:
    """Give one another token."""
    return await operators.renew(call.control, call.parameters["name"], actor=call.actor)


async def revoke_operator(call: routing.Call) -> None:
    """Take one's token away."""
    await operators.revoke(call.control, call.parameters["name"], actor=call.actor)


async def whoami(call: routing.Call) -> api.WhoAmI:
    """Show the token's owner."""
    assert call.operator is not None
    role: Any = call.operator.role
    return api.WhoAmI(
        operator=call.operator.name, role=role, control_plane_id=call.control.identity.control_plane_id,
        version=agentina.__version__,
    )  # fmt: skip


async def healthz(_: routing.Call) -> routing.Reply:
    """Answer while the process runs."""
    return routing.Reply(body=b"ok\n", content_type=b"text/plain")


async def readyz(call: routing.Call) -> routing.Reply:
    """Answer 200 while work can be done: the store can write and the process is not stopping."""
    call.control.check_running()
    await call.control.store.check()
    return routing.Reply(body=b"ready\n", content_type=b"text/plain")


async def metrics(call: routing.Call) -> routing.Reply:
    """The text exposition, with gauges taken now."""
    gauges.take(call.control)
    return routing.Reply(body=call.control.metrics.render(), content_type=b"text/plain; version=0.0.4; charset=utf-8")


def routes() -> list[routing.Route]:
    """The table's part."""
    return [*_token_routes(), *_agent_routes(), *_record_routes(), *_operator_routes(), *_process_routes()]


def _token_routes() -> list[routing.Route]:
    return [
        routing.Route(
            method="POST", path="/v1/tokens", handler=create_tokens, summary="Make activation tokens",
            auth="operator", request=api.TokenCreate, answer=api.TokensCreated, status=201, act="token.create",
        ),
        routing.Route(
            method="GET", path="/v1/tokens", handler=list_tokens, summary="List activation tokens", auth="viewer",
            answer=api.TokenList,
        ),
        routing.Route(
            method="DELETE", path="/v1/tokens/{token}", handler=revoke_token, summary="Revoke an unused token",
            auth="operator", answer=api.TokenView, act="token.revoke",
        ),
    ]  # fmt: skip


def _agent_routes() -> list[routing.Route]:
    verbs = {"drain": "Give no more work", "resume": "Give work again", "quarantine": "Set an agent aside"}
    acts = routing.acts("agent", _act, verbs, path="/v1/agents/{agent}", request=api.AgentAct, answer=api.AgentView)
    return [
        routing.Route(
            method="GET", path="/v1/agents", handler=list_agents, summary="List agents", auth="viewer",
            answer=api.AgentList,
        ),
        routing.Route(
            method="GET", path="/v1/agents/{agent}", handler=show_agent, summary="One agent", auth="viewer",
            answer=api.AgentView,
        ),
        *acts,
        routing.Route(
            method="DELETE", path="/v1/agents/{agent}", handler=remove_agent, summary="Remove an agent",
            auth="operator", status=204, act="agent.remove",
        ),
    ]  # fmt: skip


def _record_routes() -> list[routing.Route]:
    """Audit and organizations."""
    page = (
        routing.Query(name="after", kind=int, default=0),
        routing.Query(name="before", kind=int, default=0),
        routing.Query(name="limit", kind=int, default=100, minimum=1, maximum=_MAX_PAGE),
        *(routing.Query(name=name, kind=str, default="") for name in ("actor", "action", "subject")),
        routing.Query(name="since", kind=int, default=0),
    )
    return [
        routing.Route(
            method="GET", path="/v1/audit", handler=list_audit, summary="Audit records", auth="viewer",
            answer=api.AuditList, query=page,
        ),
        routing.Route(
            method="GET", path="/v1/audit/verify", handler=verify_audit, summary="Check the audit's hash chain",
            auth="viewer", answer=api.AuditVerified,
        ),
        routing.Route(
            method="GET", path="/v1/organizations", handler=list_organizations, summary="List organizations",
            auth="viewer", answer=api.OrganizationList,
        ),
        routing.Route(
            method="GET", path="/v1/organizations/{name}", handler=show_organization, summary="One organization",
            auth="viewer", answer=api.OrganizationView,
        ),
        routing.Route(
            method="PUT", path="/v1/organizations/{name}", handler=update_organization,
            summary="Create or change an organization", auth="admin", request=api.OrganizationUpdate,
            answer=api.OrganizationView, act="organization.update",
        ),
    ]  # fmt: skip


def _operator_routes() -> list[routing.Route]:
    one = "/v1/operators/{name}"
    return [
        routing.Route(
            method="POST", path="/v1/operators", handler=create_operator, summary="Let a new operator in",
            auth="admin", request=api.OperatorCreate, answer=api.OperatorToken, status=201, act="operator.create",
        ),
        routing.Route(
            method="GET", path="/v1/operators", handler=list_operators, summary="List operators", auth="admin",
            answer=api.OperatorList,
        ),
        routing.Route(
            method="POST", path=one + "/renew", handler=renew_operator, summary="Give an operator another token",
            auth="admin", answer=api.OperatorToken, act="operator.renew",
        ),
        routing.Route(
            method="DELETE", path=one, handler=revoke_operator, summary="Take an operator's token away",
            auth="admin", status=204, act="operator.revoke",
        ),
    ]  # fmt: skip


def _process_routes() -> list[routing.Route]:
    return [
        routing.Route(
            method="GET", path="/v1/whoami", handler=whoami, summary="Who the token belongs to", auth="viewer",
            answer=api.WhoAmI,
        ),
        routing.Route(
            method="GET", path="/healthz", handler=healthz, summary="The process runs", auth="public", answer=str
        ),
        routing.Route(
            method="GET", path="/readyz", handler=readyz, summary="It can do its work", auth="public", answer=str
        ),
        routing.Route(
            method="GET", path="/metrics", handler=metrics, summary="Figures for Prometheus", auth="public",
            answer=str,
        ),
    ]  # fmt: skip

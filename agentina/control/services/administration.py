"""What operators do with agents, tokens and organizations; each act is audited."""

from __future__ import annotations

from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.store import agents, audit, engine, registry
from agentina.protocol import api, names

#: What each act makes of an agent.
_STATES: Final = {"drain": "draining", "resume": "active", "quarantine": "quarantined"}


def find_agent(control: plane.Plane, public_id: str) -> fleet.Agent:
    """The agent, or ``NOT_FOUND``."""
    agent = control.fleet.find(public_id)
    if agent is None:
        raise errors.NOT_FOUND(what="agent", name=public_id[:64])
    return agent


async def act_on_agent(control: plane.Plane, public_id: str, act: str, *, reason: str, actor: str) -> fleet.Agent:
    """Drain, resume or quarantine; the agent hears of it at once.

    Raises:
        AgentinaError: ``NOT_FOUND``; ``STATE_CONFLICT``: a drain would take a quarantine's place, and its reason's.

    """
    agent = find_agent(control, public_id)
    if agent.state == "quarantined" and act == "drain":
        raise errors.STATE_CONFLICT(
            what=f"Agent {agent.name}", state="quarantined", expected="resumed; it takes no work until then"
        )
    state = _STATES[act]
    now_ms = control.clock.wall_ms()

    detail = {"name": agent.name, "reason": reason}

    def operation(tx: engine.Transaction) -> None:
        if agent.state == "quarantined" and state == "active":
            # An operator decided: whichever machine speaks next is the agent's (services/clones.py).
            agents.forget_machine(tx, agent.id)
        agents.set_state(tx, agent.id, state, reason if state != "active" else "")
        audit.append(tx, actor=actor, action=f"agent.{act}", subject=public_id, detail=detail, now_ms=now_ms)

    await control.store.write(operation)
    if agent.state == "quarantined" and state == "active":
        agent.former_boots.clear()
    agent.state, agent.state_reason = state, reason if state != "active" else ""
    agent.orders = True
    agent.wake()
    return agent


async def remove_agent(control: plane.Plane, public_id: str, *, actor: str) -> None:
    """Forget an agent. What it holds is given up when the leases run out: until then it may still be running."""
    agent = find_agent(control, public_id)
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> None:
        agents.remove(tx, agent.id, now_ms=now_ms)
        detail = {"name": agent.name}
        audit.append(tx, actor=actor, action="agent.remove", subject=public_id, detail=detail, now_ms=now_ms)

    await control.store.write(operation)
    control.fleet.remove(agent)
    control.metrics.scale_events.labels("down", "removal").inc()


async def create_tokens(control: plane.Plane, request: api.TokenCreate, *, actor: str) -> api.TokensCreated:
    """Make activation tokens; their text exists only in the answer."""
    names.check_organization(request.organization)
    if request.role is not None:
        names.check_role(request.role)
    if len(request.labels) > 64:  # noqa: PLR2004 - wire.Labels
        raise errors.INPUT_INVALID(where="labels", problem="more than 64")
    for key, value in request.labels.items():
        names.check_label(key, value)
    now_ms = control.clock.wall_ms()
    expires_ms = now_ms + round(request.expires_seconds * 1000)
    secrets = [
        api.TokenSecret(id=ids.new_id("tok"), token=ids.new_secret("act"), expires_ms=expires_ms)
        for _ in range(request.count)
    ]

    detail = {
        "organization": request.organization, "role": request.role, "labels": request.labels, "expires_ms": expires_ms,
    }  # fmt: skip

    def operation(tx: engine.Transaction) -> None:
        organization = registry.get_organization(tx, request.organization)
        labels = msgspec.json.encode(request.labels, order="sorted").decode()
        for secret in secrets:
            new = registry.NewToken(
                public_id=secret.id, token_sha256=ids.digest(secret.token), organization_id=organization["id"],
                role=request.role, labels=labels, expires_ms=expires_ms,
            )  # fmt: skip
            registry.add_token(tx, new, now_ms=now_ms)
            audit.append(tx, actor=actor, action="token.create", subject=secret.id, detail=detail, now_ms=now_ms)

    await control.store.write(operation)
    return api.TokensCreated(tokens=secrets)


async def revoke_token(control: plane.Plane, public_id: str, *, actor: str) -> engine.Row:
    """Take an unused token back; its row is returned.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``STATE_CONFLICT`` (already used: remove or quarantine its agent instead).

    """
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> engine.Row:
        token = registry.token(tx, public_id)
        if token is None:
            raise errors.NOT_FOUND(what="token", name=public_id[:64])
        if token["used_ms"] is not None:
            raise errors.STATE_CONFLICT(what=f"Token {public_id}", state="used", expected="unused")
        if token["revoked_ms"] is None:
            registry.revoke_token(tx, token["id"], now_ms=now_ms)
            audit.append(tx, actor=actor, action="token.revoke", subject=public_id, now_ms=now_ms)
        return registry.token(tx, public_id)

    return await control.store.write(operation)


async def update_organization(
    control: plane.Plane, name: str, request: api.OrganizationUpdate, *, actor: str
) -> engine.Row:
    """Create or change an organization; its agents' licenses are renewed with their next heartbeats."""
    names.check_organization(name)
    changed = {key: value for key, value in msgspec.structs.asdict(request).items() if value is not None}
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> engine.Row:
        row = registry.organization(tx, name)
        fields = registry.Organization.__dataclass_fields__
        present = {} if row is None else {field: row[field] for field in fields}
        wanted = registry.Organization(**{"name": name, **present, **changed})
        # Who is away is given the new license when it comes back, whatever becomes of this process until then.
        agents.outdate_licenses(tx, registry.save_organization(tx, wanted, now_ms=now_ms))
        audit.append(tx, actor=actor, action="organization.update", subject=name, detail=changed, now_ms=now_ms)
        return registry.organization(tx, name)

    row = await control.store.write(operation)
    for agent in control.fleet.agents.values():
        if agent.organization_id == row["id"]:
            agent.plan, agent.max_agents, agent.channel = row["plan"], row["max_agents"], row["channel"]
            agent.license_tasks = row["max_concurrent_tasks_per_agent"]
            agent.offline_grace_hours = row["offline_grace_hours"]
            # Older than any license: the next heartbeat renews it. What heartbeats said may be on its way to the
            # database just now, with the former time.
            agent.license_issued_ms, agent.is_changed = 0, True
    return row

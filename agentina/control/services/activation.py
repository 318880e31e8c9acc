"""Redeeming activation tokens: exactly one agent for each, recoverable by the machine that won, refused to others."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Final

import msgspec

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.control.services import licenses
from agentina.control.store import agents, audit, engine, registry
from agentina.protocol import licensing, names, signing, versions
from agentina.system import clock as clocks

#: Refusals of one token that are audited; more are only counted, so that nobody fills the disk with them.
MAX_AUDITED: Final = 100


@dataclasses.dataclass(frozen=True, slots=True)
class _Redeemed:
    """What the transaction decided. A refusal is a value, because raising would undo its audit record."""

    row: engine.Row = None
    created: bool = False
    refusal: errors.AgentinaError | None = None


async def activate(control: plane.Plane, message: licensing.Activate) -> licensing.Activated:
    """Give the machine that holds the token and the key an identity.

    Raises:
        AgentinaError: ``TOKEN_UNKNOWN``, ``TOKEN_USED``, ``TOKEN_EXPIRED``, ``TOKEN_REVOKED``,
            ``LICENSE_AGENTS_EXHAUSTED``, ``SIGNATURE_INVALID``, ``PROTOCOL_UNSUPPORTED``, ``AGENT_UNKNOWN`` (the
            agent this key had was removed).

    """
    check_protocol(message.protocol)
    key = _proven_key(message)
    _check_wishes(message)
    now_ms = control.clock.wall_ms()
    redeemed = await control.store.write(lambda tx: _redeem(tx, message, key, now_ms))
    if redeemed.refusal is not None:
        raise redeemed.refusal
    agent = control.fleet.find(redeemed.row["public_id"])
    if agent is None:
        agent = plane.agent_from_row(redeemed.row)
        control.fleet.add(agent)
    if redeemed.created:
        control.metrics.scale_events.labels("up", "activation").inc()
    return _answer(control, agent, created=redeemed.created)


def check_protocol(version: int) -> None:
    """Raise ``PROTOCOL_UNSUPPORTED`` unless this code speaks that version."""
    if not versions.OLDEST_PROTOCOL_VERSION <= version <= versions.PROTOCOL_VERSION:
        raise errors.PROTOCOL_UNSUPPORTED(
            found=version, oldest=versions.OLDEST_PROTOCOL_VERSION, newest=versions.PROTOCOL_VERSION
        )


def _proven_key(message: licensing.Activate) -> signing.PublicKey:
    key = signing.parse_public_key(message.public_key)
    payload = signing.verify(message.proof, "activation", {key.id: key}, "the activation")
    if payload != message.token.encode():
        raise errors.SIGNATURE_INVALID(what="the activation", problem="it proves another token")
    return key


def _check_wishes(message: licensing.Activate) -> None:
    names.check_instance(message.instance)
    if message.role is not None:
        names.check_role(message.role)
    for label, value in message.labels.items():
        names.check_label(label, value)


def _redeem(tx: engine.Transaction, message: licensing.Activate, key: signing.PublicKey, now_ms: int) -> _Redeemed:
    token = registry.token_by_hash(tx, ids.digest(message.token))
    if token is None:
        return _Redeemed(refusal=errors.TOKEN_UNKNOWN())
    if token["used_ms"] is not None and token["used_key"] == key.key:
        agent = agents.by_id(tx, token["agent_id"])
        return _Redeemed(refusal=errors.AGENT_UNKNOWN()) if agent["removed_ms"] is not None else _Redeemed(agent)
    refusal = _refusal(tx, token, now_ms)
    if refusal is None:
        return _Redeemed(_make_agent(tx, token, message, key, now_ms=now_ms), created=True)
    registry.count_refusal(tx, token["id"])
    if token["refused"] < MAX_AUDITED:
        audit.append(tx, actor=f"host:{message.hostname}", action="token.refused", subject=token["public_id"],
                     detail={"code": refusal.code}, now_ms=now_ms)  # fmt: skip
    return _Redeemed(refusal=refusal)


def _refusal(tx: engine.Transaction, token: engine.Row, now_ms: int) -> errors.AgentinaError | None:
    if token["used_ms"] is not None:
        return errors.TOKEN_USED(used_at=clocks.show_time(token["used_ms"]), host=token["used_by"])
    if token["revoked_ms"] is not None:
        return errors.TOKEN_REVOKED(revoked_at=clocks.show_time(token["revoked_ms"]))
    if token["expires_ms"] <= now_ms:
        return errors.TOKEN_EXPIRED(expired_at=clocks.show_time(token["expires_ms"]))
    organization = registry.organization_by_id(tx, token["organization_id"])
    count = agents.count(tx, organization["id"])
    if count >= organization["max_agents"]:
        return errors.LICENSE_AGENTS_EXHAUSTED(
            organization=organization["name"], agents=count, max_agents=organization["max_agents"]
        )
    return None


def _make_agent(
    tx: engine.Transaction, token: engine.Row, message: licensing.Activate, key: signing.PublicKey, *, now_ms: int
) -> engine.Row:
    labels = {**message.labels, **msgspec.json.decode(token["labels"])}
    new = agents.NewAgent(
        public_id=str(uuid.uuid4()), organization_id=token["organization_id"], public_key=key.key,
        hostname=message.hostname, instance=message.instance,
        fingerprint=msgspec.json.encode(message.fingerprint).decode(),
        role=token["role"] if token["role"] is not None else message.role,
        labels=msgspec.json.encode(labels, order="sorted").decode(),
        max_concurrent_tasks=message.max_concurrent_tasks or 1, version=message.version,
    )  # fmt: skip
    agent = agents.insert(tx, new, now_ms=now_ms)
    registry.use_token(tx, token["id"], agent=agent, key=key.key, host=message.hostname, now_ms=now_ms)
    audit.append(tx, actor=f"host:{message.hostname}", action="token.redeemed", subject=token["public_id"],
                 detail={"agent": new.public_id, "instance": message.instance}, now_ms=now_ms)  # fmt: skip
    return agents.by_id(tx, agent)


def _answer(control: plane.Plane, agent: fleet.Agent, *, created: bool) -> licensing.Activated:
    return licensing.Activated(
        agent_id=agent.public_id, organization=agent.organization,
        control_plane_id=control.identity.control_plane_id, keys=[control.identity.signing_key.public],
        license=licenses.renew_if_due(control, agent) or licenses.issue(control, agent),
        role=agent.role, labels=agent.labels,
        max_concurrent_tasks=min(agent.max_concurrent_tasks, agent.license_tasks),
        server_time_ms=control.clock.wall_ms(), created=created,
    )  # fmt: skip

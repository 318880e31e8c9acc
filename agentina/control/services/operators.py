"""Operators: who may use the API, and the tokens that they do it with, of which only hashes are kept.

Names are never given anew, since the audit has them: who was revoked and comes back is the same operator with another
token.
"""

from __future__ import annotations

from typing import Final

from agentina import errors
from agentina.control import ids, plane
from agentina.control.store import audit, engine, registry
from agentina.protocol import api, names

#: Made at the first start.
FIRST: Final = "admin"


async def ensure_first(control: plane.Plane) -> str:
    """On the first start make the default organization and an administrator; its token, or nothing."""
    token = ids.new_secret("aop")
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> str:
        if registry.operators(tx):
            return ""
        registry.save_organization(tx, registry.Organization(name="default"), now_ms=now_ms)
        registry.add_operator(tx, name=FIRST, role="admin", token_sha256=ids.digest(token), now_ms=now_ms)
        audit.append(tx, actor="control-plane", action="operator.create", subject=FIRST, now_ms=now_ms)
        return token

    return await control.store.write(operation)


async def create(control: plane.Plane, request: api.OperatorCreate, *, actor: str) -> api.OperatorToken:
    """Let somebody new in.

    Raises:
        AgentinaError: ``NAME_INVALID``, ``STATE_CONFLICT`` (there is one of that name), ``INPUT_INVALID`` (there are
            too many).

    """
    name = names.check_operator(request.name)
    token = ids.new_secret("aop")
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> None:
        if registry.operator(tx, name) is not None:
            raise errors.STATE_CONFLICT(
                what=f"Operator {name}", state="there already", expected="a new name; `agentina operator renew` gives"
                " the one there another token",
            )  # fmt: skip
        if len(registry.operators(tx)) >= registry.MAX_OPERATORS:
            raise errors.INPUT_INVALID(where="operators", problem=f"there are {registry.MAX_OPERATORS} already")
        registry.add_operator(tx, name=name, role=request.role, token_sha256=ids.digest(token), now_ms=now_ms)
        detail = {"role": request.role}
        audit.append(tx, actor=actor, action="operator.create", subject=name, detail=detail, now_ms=now_ms)

    await control.store.write(operation)
    control.load_operators()
    return api.OperatorToken(name=name, role=request.role, token=token)


async def renew(control: plane.Plane, name: str, *, actor: str) -> api.OperatorToken:
    """Give an operator another token, also one who was revoked; the former token holds no longer.

    Raises:
        AgentinaError: ``NOT_FOUND``.

    """
    token = ids.new_secret("aop")
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> engine.Row:
        row = _find(tx, name)
        registry.renew_operator(tx, name, token_sha256=ids.digest(token))
        audit.append(tx, actor=actor, action="operator.renew", subject=name, now_ms=now_ms)
        return row

    row = await control.store.write(operation)
    control.load_operators()
    return api.OperatorToken(name=name, role=row["role"], token=token)


async def revoke(control: plane.Plane, name: str, *, actor: str) -> None:
    """Let an operator's token hold no longer. Doing it again changes nothing.

    Raises:
        AgentinaError: ``NOT_FOUND``, ``STATE_CONFLICT`` (nobody else could manage operators).

    """
    now_ms = control.clock.wall_ms()

    def operation(tx: engine.Transaction) -> None:
        if _find(tx, name)["revoked_ms"] is not None:
            return
        others = [row for row in registry.operators(tx) if row["name"] != name and row["revoked_ms"] is None]
        if not any(row["role"] == "admin" for row in others):
            raise errors.STATE_CONFLICT(
                what=f"Operator {name}", state="the only administrator", expected="another one beside it"
            )
        registry.revoke_operator(tx, name, now_ms=now_ms)
        audit.append(tx, actor=actor, action="operator.revoke", subject=name, now_ms=now_ms)

    await control.store.write(operation)
    control.load_operators()


def _find(tx: engine.Transaction, name: str) -> engine.Row:
    row = registry.operator(tx, name)
    if row is None:
        raise errors.NOT_FOUND(what="operator", name=name[:64])
    return row

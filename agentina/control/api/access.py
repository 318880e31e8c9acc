"""Who is calling: agents by signed assertions, operators by bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from agentina import errors
from agentina.control import fleet, ids, plane
from agentina.protocol import signing

_ROLES: Final = {"viewer": 0, "operator": 1, "admin": 2}
#: Longest operator token looked at, in bytes.
_MAX_TOKEN: Final = 256


def check_role(operator: plane.Operator, needed: str) -> None:
    """Raise ``FORBIDDEN`` unless ``operator`` has at least the role ``needed``."""
    if _ROLES[operator.role] < _ROLES[needed]:
        raise errors.FORBIDDEN(needed=needed, role=operator.role)


class Access:
    """Checks the ``Authorization`` header."""

    def __init__(self, control: plane.Plane) -> None:
        self._control = control

    def operator(self, header: bytes | None) -> plane.Operator:
        """The operator, whatever the role.

        Raises:
            AgentinaError: ``AUTH_REQUIRED``, ``AUTH_INVALID``.

        """
        scheme, _, token = (header or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not 0 < len(token) <= _MAX_TOKEN:
            raise errors.AUTH_REQUIRED()  # noqa: RSE102 - calling the entry makes the exception
        digest = ids.digest(token.decode("latin-1").strip())
        operator = None
        # Every entry is compared, in constant time: neither a near miss nor a position can be measured.
        for known, candidate in self._control.operators.items():
            if hmac.compare_digest(known, digest):
                operator = candidate
        if operator is None:
            raise errors.AUTH_INVALID()  # noqa: RSE102 - calling the entry makes the exception
        return operator

    def agent(self, header: bytes | None) -> fleet.Agent:
        """The agent whose assertion this is. A verified one is remembered until it expires.

        Raises:
            AgentinaError: ``ASSERTION_INVALID``, ``ASSERTION_EXPIRED``, ``AGENT_UNKNOWN``.

        """
        if header is None or len(header) > signing.MAX_ASSERTION:
            raise errors.ASSERTION_INVALID(problem="expected 'Authorization: Agentina <assertion>'")
        digest = hashlib.blake2b(header, digest_size=16).digest()
        now_ms = self._control.clock.wall_ms()
        agent = self._control.fleet.by_assertion(digest, now_ms)
        if agent is not None:
            return agent
        signed, assertion = signing.read_assertion(header.decode("latin-1"))
        agent = self._control.fleet.find(assertion.agent_id)
        if agent is None:
            raise errors.AGENT_UNKNOWN()  # noqa: RSE102 - calling the entry makes the exception
        audience = self._control.identity.control_plane_id
        signing.check_assertion(signed, assertion, key=agent.key, audience=audience, now_ms=now_ms)
        until_ms = assertion.expires_ms + signing.CLOCK_TOLERANCE_MS
        self._control.fleet.remember_assertion(agent, digest, until_ms)
        return agent

"""How a host becomes an agent (``POST /v1/activate``), and the license that it gets.

The rules are in docs/reference/protocol.md. Times ending in ``_ms`` are milliseconds since the Unix epoch.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agentina.protocol import signing, wire


class Activate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``POST /v1/activate``: redeem an activation token for an agent identity. Idempotent for the same key."""

    token: Annotated[str, msgspec.Meta(min_length=8, max_length=128)]
    #: The host's new Ed25519 key, base64.
    public_key: Annotated[str, msgspec.Meta(max_length=64)]
    #: Signature with that key, purpose ``activation``, payload = the token: proves the key is held.
    proof: signing.Signed
    hostname: wire.Short
    instance: wire.Short
    fingerprint: wire.Fingerprint = wire.Fingerprint()
    #: Wished; a token that fixes role or labels wins.
    role: wire.Short | None = None
    labels: wire.Labels = {}
    max_concurrent_tasks: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    version: wire.Short = ""
    protocol: int = 1


class License(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The signed grant (purpose ``license``)."""

    agent_id: str
    organization: str
    plan: str
    max_agents: int
    max_concurrent_tasks_per_agent: int
    channel: str
    features: list[str] = []
    #: Hours without the control plane after which no new work is taken.
    offline_grace_hours: float
    issued_ms: int
    expires_ms: int
    #: ``required``: a drifted fingerprint refuses; ``optional``: it is reported; ``none``.
    machine_binding: Literal["required", "optional", "none"] = "optional"


class Activated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to :class:`Activate`."""

    agent_id: str
    organization: str
    #: The control plane's id: the audience of assertions.
    control_plane_id: str
    #: Keys that sign licenses and assignments; pinned by the host.
    keys: list[signing.PublicKey]
    license: signing.Signed
    role: str | None = None
    labels: wire.Labels = {}
    max_concurrent_tasks: int = 1
    server_time_ms: int
    #: False when the same key had redeemed the token before.
    created: bool = True

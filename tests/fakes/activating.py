"""The control plane's side of activation, with real signatures: tokens, one owner each, idempotent for the same key."""

from __future__ import annotations

import msgspec

from agentina.protocol import licensing, signing
from tests.fakes import scripted_server

YEAR_MS = 365 * 86_400_000


class Activating:
    """Answers ``/healthz`` and ``/v1/activate``. ``lose`` answers are computed and then lost on the way."""

    def __init__(self, *, tokens: set[str], now_ms: int, lose: int = 0) -> None:
        self.key = signing.SigningKey.generate()
        self.tokens = tokens
        self.owners: dict[str, tuple[str, str]] = {}
        self.requests: list[licensing.Activate] = []
        self._now_ms = now_ms
        self._lose = lose

    def __call__(self, asked: scripted_server.Asked) -> bytes:
        if asked.path != "/v1/activate":
            return scripted_server.answer({"ok": True}, headers={"Agentina-Time": str(self._now_ms)})
        request = msgspec.json.decode(asked.body, type=licensing.Activate)
        self.requests.append(request)
        answer = self._redeem(request)
        if self._lose:
            self._lose -= 1
            return b""
        return answer

    def _redeem(self, request: licensing.Activate) -> bytes:
        public = signing.parse_public_key(request.public_key)
        proved = signing.verify(request.proof, "activation", {public.id: public}, "proof")
        assert proved == request.token.encode()
        if request.token not in self.tokens:
            return scripted_server.refusal("TOKEN_UNKNOWN", status=403)
        owner = self.owners.setdefault(request.token, (public.key, f"agent-{len(self.owners) + 1}"))
        if owner[0] != public.key:
            context = {"used_at": "2026-11-21T10:00:00Z", "host": "first-host"}
            return scripted_server.refusal("TOKEN_USED", status=409, **context)
        license_ = licensing.License(
            agent_id=owner[1], organization="default", plan="free", max_agents=10, max_concurrent_tasks_per_agent=4,
            channel="stable", offline_grace_hours=72, issued_ms=self._now_ms, expires_ms=self._now_ms + YEAR_MS,
        )  # fmt: skip
        activated = licensing.Activated(
            agent_id=owner[1], organization="default", control_plane_id="cp_1", keys=[self.key.public],
            license=self.key.sign_struct("license", license_), role=request.role, labels=request.labels,
            server_time_ms=self._now_ms,
        )  # fmt: skip
        return scripted_server.answer(msgspec.json.encode(activated))

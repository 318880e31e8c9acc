"""Licenses: the signed grant an agent holds, issued at activation and renewed at half of its life."""

from __future__ import annotations

from typing import Final

from agentina.control import fleet, plane
from agentina.protocol import licensing, signing

_DAY_MS: Final = 86_400_000
#: Heartbeat answers that carry a renewed license, so that a lost one does no harm.
REPEATS: Final = 3


def issue(control: plane.Plane, agent: fleet.Agent) -> signing.Signed:
    """Sign the license of an agent as of its ``license_issued_ms``."""
    content = licensing.License(
        agent_id=agent.public_id, organization=agent.organization, plan=agent.plan, max_agents=agent.max_agents,
        max_concurrent_tasks_per_agent=agent.license_tasks, channel=agent.channel,
        offline_grace_hours=agent.offline_grace_hours, issued_ms=agent.license_issued_ms,
        expires_ms=agent.license_issued_ms + _lifetime_ms(control),
    )  # fmt: skip
    return control.identity.signing_key.sign_struct("license", content)


def renew_if_due(control: plane.Plane, agent: fleet.Agent) -> signing.Signed | None:
    """A newer license to send with this heartbeat, or None."""
    now_ms = control.clock.wall_ms()
    age = now_ms - agent.license_issued_ms
    # A negative age: the clock was set back since; the old license would outlive its time.
    if not 0 <= age < _lifetime_ms(control) // 2:
        agent.license_issued_ms = now_ms
        agent.license_repeats = REPEATS
        agent.is_changed = True
    if agent.license_repeats <= 0:
        return None
    agent.license_repeats -= 1
    return issue(control, agent)


def _lifetime_ms(control: plane.Plane) -> int:
    return round(control.settings.license_days * _DAY_MS)

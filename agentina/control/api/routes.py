"""The route table: every address of the control plane."""

from __future__ import annotations

from agentina.control.api import admin, agent, anomalies, budgets, jobs, releases, rollouts, routing, usage


def table() -> list[routing.Route]:
    """All routes."""
    return [
        *agent.routes(), *jobs.routes(), *admin.routes(), *releases.routes(), *rollouts.routes(), *anomalies.routes(),
        *budgets.routes(), *usage.routes(),
    ]  # fmt: skip

"""Figures that are taken when somebody asks for the metrics, from memory and from the store."""

from __future__ import annotations

import collections
from typing import Final

import agentina
from agentina.control import metrics, plane
from agentina.control.services import budgets
from agentina.control.store import anomalies, jobs, pathclaims, registry, rollouts

#: Most budgets that are shown; there may be one for each agent.
_MAX_BUDGETS: Final = 500


def take(control: plane.Plane) -> None:
    """Set all gauges."""
    _take_fleet(control)
    _take_queue(control)
    _take_tasks(control)
    _take_budgets(control)


def _take_fleet(control: plane.Plane) -> None:
    figures, now = control.metrics, control.clock.boot()
    online = [agent for agent in control.fleet.agents.values() if control.fleet.is_online(agent, now)]
    other = sum(agent.version != agentina.__version__ for agent in online)
    figures.online.set(len(online) / max(len(control.fleet.agents), 1))
    figures.skew.set(other / max(len(online), 1))
    unset = sum(agent.configured.is_skewed for agent in online)
    figures.configuration_skew.set(unset / max(len(online), 1))
    figures.held_polls.set(sum(1 for _ in control.fleet.holding_polls()))
    figures.rollout_agents.clear()
    for row in control.store.read(rollouts.standings):
        figures.rollout_agents.labels(row["public_id"], row["standing"]).set(row["agents"])


def _take_queue(control: plane.Plane) -> None:
    figures = control.metrics
    figures.pending.clear()
    for row in control.store.read(jobs.pending):
        figures.pending.labels(row["organization"], row["role"]).set(row["pending"])
    figures.waiting_for_paths.clear()
    for row in control.store.read(pathclaims.count_waiting):
        figures.waiting_for_paths.labels(row["organization"]).set(row["waiting"])
    figures.unresolved.clear()
    for row in control.store.read(anomalies.unresolved):
        figures.unresolved.labels(metrics.anomaly_kind(row["kind"]), row["state"]).inc(row["anomalies"])


def _take_tasks(control: plane.Plane) -> None:
    """Of the tasks that agents hold."""
    figures, held = control.metrics, control.fleet.held.values()
    taken = [task.checkpointed for task in held if task.checkpointed is not None]
    figures.checkpoint_age.set(control.clock.boot() - min(taken) if taken else 0)
    parked = collections.Counter(task.agent.organization_id for task in held if task.parked)
    figures.parked.clear()
    names = control.store.read(lambda tx: {one: registry.organization_by_id(tx, one)["name"] for one in parked})
    for number, count in parked.items():
        figures.parked.labels(names[number]).set(count)


def _take_budgets(control: plane.Plane) -> None:
    figures = control.metrics
    figures.budget_limit.clear()
    figures.budget_left.clear()
    for budget in budgets.listed(control)[:_MAX_BUDGETS]:
        figures.show_budget(budget)

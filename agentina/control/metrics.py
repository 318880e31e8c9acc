"""Figures for Prometheus. Names are a contract (DESIGN, section 8); counters begin at zero with each start."""

from __future__ import annotations

from typing import Final

import prometheus_client
from prometheus_client import registry

from agentina import errors
from agentina.protocol import anomalies, budgets, wire

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 600, 3600, 14_400)
#: Most models, and most tools, with labels of their own.
_MAX_MODELS: Final = 200
_MAX_TOOLS: Final = 100
_SHARES: Final = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
#: No honest figure of one task comes near.
_MOST: Final = 1 << 53
_BYTES: Final = tuple(float(1 << shift) for shift in range(22, 38, 2))


class Metrics:
    """The control plane's own registry, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = registry.CollectorRegistry(auto_describe=True)
        self.tasks = prometheus_client.Counter(
            "agent_tasks", "Tasks that ended.", ["role", "status", "priority"], registry=self.registry
        )
        self.session_duration = prometheus_client.Histogram(
            "agent_session_duration_seconds", "Time from start to end of a task.", ["role"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.jobs = prometheus_client.Counter(
            "jobs_completed", "Jobs that reached a final state.", ["status"], registry=self.registry
        )
        self.start_latency = prometheus_client.Histogram(
            "task_start_latency_seconds", "Time from runnable to the start of the process.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.memory_peak = prometheus_client.Histogram(
            "task_memory_peak_bytes", "Highest memory use of a task.", ["role"],
            buckets=_BYTES, registry=self.registry,
        )  # fmt: skip
        self.tokens = prometheus_client.Counter(
            "agent_tokens_consumed", "Tokens of calls of models, cached ones included.", ["role", "model"],
            registry=self.registry,
        )  # fmt: skip
        self.cost = prometheus_client.Counter(
            "agent_cost_dollars", "US dollars of calls of models that have a price.", ["role", "model"],
            registry=self.registry,
        )  # fmt: skip
        self.unpriced = prometheus_client.Counter(
            "agent_calls_unpriced", "Calls of models without a price: what they cost is not known.",
            ["role", "model"], registry=self.registry,
        )  # fmt: skip
        self.tool_calls = prometheus_client.Counter(
            "agent_tool_calls",
            "Tools that AI agents used, by how that went (ok, error, denied), as their command lines told at the end. "
            "`tool` is empty where they did not tell which, and of tools beyond the first 32 of a run.",
            ["role", "tool", "status"], registry=self.registry,
        )  # fmt: skip
        self.context = prometheus_client.Histogram(
            "agent_context_utilization", "Share of the model's context that was filled when an AI agent ended.",
            ["role"], buckets=_SHARES, registry=self.registry,
        )  # fmt: skip
        self.io_bytes = prometheus_client.Counter(
            "task_io_bytes", "Bytes that tasks read from disks and wrote to them, where that can be measured.",
            ["role", "direction"], registry=self.registry,
        )  # fmt: skip
        self.io_operations = prometheus_client.Counter(
            "task_io_operations", "Reads and writes of disks by tasks, where that can be measured.",
            ["role"], registry=self.registry,
        )  # fmt: skip
        self.network_bytes = prometheus_client.Counter(
            "task_network_bytes",
            "Bytes between tasks and the gateways of their hosts: calls of models, tunnels, HTTP. What a task sends "
            "past the gateway, where its host's owner lets it, is not measured.",
            ["role", "direction"], registry=self.registry,
        )  # fmt: skip
        self.budget_limit = prometheus_client.Gauge(
            "budget_limit", "Budgets of organizations and agents for today (tokens, dollars, tool_calls).",
            ["scope", "name", "kind"], registry=self.registry,
        )  # fmt: skip
        self.budget_left = prometheus_client.Gauge(
            "budget_left", "What is left of them, as far as hosts have told.", ["scope", "name", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self.parked = prometheus_client.Gauge(
            "tasks_parked", "Tasks that are held at a call of a model because a budget is used up.", ["organization"],
            registry=self.registry,
        )  # fmt: skip
        self.checkpoints = prometheus_client.Counter(
            "checkpoints_stored", "Checkpoints of tasks that came in full.", registry=self.registry
        )
        self.checkpoint_age = prometheus_client.Gauge(
            "checkpoint_oldest_age_seconds",
            "Age of the newest checkpoint of the running task for which it is oldest, since the control plane's start; "
            "0: no task has one.",
            registry=self.registry,
        )  # fmt: skip
        self.waiting_for_paths = prometheus_client.Gauge(
            "jobs_waiting_for_paths", "Jobs that wait because another one has claimed some of their paths.",
            ["organization"], registry=self.registry,
        )  # fmt: skip
        self._models: set[str] = set()
        self._tools: set[str] = set()
        self.pending = prometheus_client.Gauge(
            "queue_pending", "Jobs ready to run that no agent has taken.", ["organization", "role"],
            registry=self.registry,
        )  # fmt: skip
        self.online = prometheus_client.Gauge(
            "agents_online_ratio", "Share of agents heard of within three heartbeats.", registry=self.registry
        )
        self.skew = prometheus_client.Gauge(
            "agents_version_skew", "Share of online agents on another version than the control plane.",
            registry=self.registry,
        )  # fmt: skip
        self.configuration_skew = prometheus_client.Gauge(
            "agents_configuration_skew", "Share of online agents with other settings than the newest rollout wants.",
            registry=self.registry,
        )  # fmt: skip
        self.release_expiry = prometheus_client.Gauge(
            "release_metadata_expiry_timestamp_seconds", "When a role's metadata of the release repository expires.",
            ["role"], registry=self.registry,
        )  # fmt: skip
        self.rollout_agents = prometheus_client.Gauge(
            "rollout_agents", "Agents of rollouts under way by their standing.", ["rollout", "standing"],
            registry=self.registry,
        )  # fmt: skip
        self.rollouts_halted = prometheus_client.Counter(
            "rollouts_halted", "Rollouts that a gate halted and rolled back.", ["gate"], registry=self.registry
        )
        self.scale_events = prometheus_client.Counter(
            "agent_scale_events",
            "Agents that the fleet gained (up) and lost (down), by what did it: an activation, a removal. Nothing "
            "scales a fleet by itself yet.",
            ["direction", "trigger"], registry=self.registry,
        )  # fmt: skip
        self.anomalies = prometheus_client.Counter(
            "anomalies_reported",
            "Reports that were added to anomalies: refusals of gateways by their code, complaints, findings of health, "
            "overlaps of paths, and all others.",
            ["kind", "code"], registry=self.registry,
        )  # fmt: skip
        self.unresolved = prometheus_client.Gauge(
            "anomalies_unresolved", "Anomalies that nobody has closed.", ["kind", "state"], registry=self.registry
        )
        self.held_polls = prometheus_client.Gauge("agent_polls_held", "Long polls open now.", registry=self.registry)

    def count_use(self, role: str, model: str, used: budgets.Amounts) -> None:
        """Calls of a model were reported. A task can name any: beyond some hundred they share one label."""
        model = _bounded(model, self._models, _MAX_MODELS)
        self.tokens.labels(role, model).inc(used.tokens)
        self.cost.labels(role, model).inc(used.cost_nano / budgets.DOLLAR)
        self.unpriced.labels(role, model).inc(used.unpriced)

    def count_io(self, role: str, used: wire.Usage) -> None:
        """A task ended. What its host cannot measure is not counted."""
        for direction, size in (("read", used.io_read_bytes), ("write", used.io_write_bytes)):
            if size is not None:
                self.io_bytes.labels(role, direction).inc(bounded(size))
        if used.io_operations is not None:
            self.io_operations.labels(role).inc(bounded(used.io_operations))
        for direction, size in (("received", used.network_received_bytes), ("sent", used.network_sent_bytes)):
            if size is not None:
                self.network_bytes.labels(role, direction).inc(bounded(size))

    def count_anomaly(self, kind: str, code: str) -> None:
        """A report was added to an anomaly. What hosts call it must not make label values without end."""
        self.anomalies.labels(anomaly_kind(kind), code if code in errors.CATALOGUE else "other").inc()

    def show_budget(self, budget: budgets.BudgetView) -> None:
        """A budget as it is now."""
        for key, unit, one in (
            ("tokens", "tokens", 1), ("cost_nano", "dollars", budgets.DOLLAR), ("tool_calls", "tool_calls", 1),
        ):  # fmt: skip
            limit, left = getattr(budget.limit, key), getattr(budget.left, key)
            if limit is not None and left is not None:
                labels = budget.scope, budget.name, unit
                self.budget_limit.labels(*labels).set(limit / one)
                self.budget_left.labels(*labels).set(left / one)

    def count_run(self, role: str, run: wire.AgentRun) -> None:
        """An AI agent's task ended."""
        for used in run.tools:
            tool = _bounded(used.name, self._tools, _MAX_TOOLS)
            self._count_tool(role, tool, calls=used.calls, failed=used.errors, denied=used.denials)
        self._count_tool(
            role, "",
            calls=run.tool_calls - sum(used.calls for used in run.tools),
            failed=run.tool_errors - sum(used.errors for used in run.tools),
            denied=run.denials - sum(used.denials for used in run.tools),
        )  # fmt: skip
        if run.context_tokens is not None and run.context_window:
            self.context.labels(role).observe(min(run.context_tokens / run.context_window, 1.0))

    def _count_tool(self, role: str, tool: str, *, calls: int, failed: int, denied: int) -> None:
        for status, count in (("ok", calls - failed), ("error", failed), ("denied", denied)):
            # What a host says of its tools need not add up; a counter never goes back.
            if count > 0:
                self.tool_calls.labels(role, tool, status).inc(count)

    def render(self) -> bytes:
        """The text exposition."""
        return prometheus_client.generate_latest(self.registry)


def _bounded(name: str, known: set[str], most: int) -> str:
    """A name that a task made up, as a label value: beyond some they share one."""
    if name not in known and len(known) >= most:
        return budgets.OTHER
    known.add(name)
    return name


def bounded(figure: int) -> int:
    """What a host measured: it may be of another version, or lie, and no counter goes back or beyond all numbers."""
    return min(max(0, figure), _MOST)


def anomaly_kind(kind: str) -> str:
    """A known kind, or ``other``: what hosts say must not make label values without end."""
    return kind if kind in anomalies.KINDS else "other"


def priority_band(priority: int) -> str:
    """Few label values instead of a hundred."""
    if priority < 34:  # noqa: PLR2004 - thirds of 0 to 100
        return "low"
    return "normal" if priority < 67 else "high"  # noqa: PLR2004

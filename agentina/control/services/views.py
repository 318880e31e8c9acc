"""What operators are shown: rows and memory as the structs of the operator API. Environment values are hidden."""

from __future__ import annotations

from typing import Any

import msgspec

import agentina
from agentina import errors
from agentina.control import fleet, plane
from agentina.control.services import blockers, pathclaims, releases, usage
from agentina.control.store import engine, jobs, tasks
from agentina.protocol import api, wire
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol.states import Reason, State

#: Lines of the timeline in `job show`; `events` has them all.
_MAX_EVENTS = 500


def job_summary(row: engine.Row) -> api.JobSummary:
    """One line of a list."""
    agent = None if row["agent_id"] is None else f"{row['agent_hostname']}/{row['agent_instance']}"
    return api.JobSummary(
        id=row["public_id"], name=row["name"], organization=row["organization"], state=State(row["state"]),
        reason=Reason(row["reason"]), detail=row["detail"], role=row["role"], priority=row["priority"],
        created_ms=row["created_ms"], started_ms=row["started_ms"], ended_ms=row["ended_ms"],
        attempts=row["attempts"], agent_id=row["agent_id"], agent=agent,
    )  # fmt: skip


def job_view(control: plane.Plane, public_id: str) -> api.JobView:
    """Everything about one job.

    Raises:
        AgentinaError: ``JOB_UNKNOWN``.

    """

    def read(tx: engine.Transaction) -> api.JobView:
        job = jobs.get(tx, public_id)
        spec = msgspec.json.decode(jobs.spec(tx, job.id), type=protocol_jobs.JobSpec)
        return api.JobView(
            job=job_summary(jobs.summary(tx, job.id)),
            spec=protocol_jobs.without_values(spec),
            tasks=[task_view(control, public_id, row) for row in tasks.of_job(tx, job.id)],
            events=[job_event(public_id, row) for row in jobs.events(tx, job.id, after=0, limit=_MAX_EVENTS)],
            artifacts=[artifact(row) for row in tasks.artifacts_of_job(tx, job.id)],
            blockers=_blockers(control, tx, job, spec) if job.state is State.QUEUED else [],
            dead_letter=bool(job.dead_letter),
            usage=usage.of_job(tx, job.id),
        )

    return control.store.read(read)


def _blockers(control: plane.Plane, tx: engine.Transaction, job: jobs.Job, spec: protocol_jobs.JobSpec) -> list[str]:
    now = control.clock.boot()
    waits = blockers.Waits(
        needs=[need.public_id for need in jobs.needs(tx, job.id) if need.state is not State.SUCCEEDED],
        backoff_seconds=0 if job.ready else max(job.runnable_ms - control.clock.wall_ms(), 0) / 1000,
        memory_bytes=job.memory_bytes,
        paths=pathclaims.explain(tx, job),
        gateway=spec.gateway,
    )
    candidates = [
        blockers.Candidate(
            name=agent.name,
            organization_id=agent.organization_id,
            role=agent.role,
            labels=agent.labels,
            runners=agent.runners,
            state=agent.state,
            is_online=control.fleet.is_online(agent, now),
            held=len(agent.held),
            max_tasks=min(agent.max_concurrent_tasks, agent.license_tasks),
            slots=agent.poll_slots,
            memory_bytes=agent.poll_memory,
            gateway=_gateway(agent),
            gateway_problem=(agent.host.gateway if agent.host is not None else "") or "it does not say why",
        )
        for agent in control.fleet.agents.values()
    ]
    return blockers.explain(waits, control.fleet.classes[job.class_id], candidates)


def _gateway(agent: fleet.Agent) -> protocol_jobs.GatewayState:
    """How its host's gateway is: as its polls say, or, of a host too old for that, its heartbeats."""
    if agent.gateway or agent.host is None:
        return agent.gateway
    if errors.GATEWAY_UNUSABLE.code in agent.host.attention:
        return "unusable"
    return "none" if agent.host.gateway else ""


def task_view(control: plane.Plane, job: str, row: engine.Row) -> api.TaskView:
    """One task."""
    task_id = f"{job}.{row['number']}"
    held = control.fleet.held.get(task_id)
    return api.TaskView(
        id=task_id, number=row["number"], agent_id=row["agent"], agent=f"{row['hostname']}/{row['instance']}",
        state=State(row["state"]), reason=Reason(row["reason"]), detail=row["detail"], assigned_ms=row["assigned_ms"],
        started_ms=row["started_ms"], ended_ms=row["ended_ms"], pid=row["pid"],
        output_bytes=control.blobs.output_size(task_id),
        outcome=None if row["outcome"] is None else msgspec.json.decode(row["outcome"], type=wire.Outcome),
        run=None if held is None else held.run,
        models=[] if held is None else held.models,
        progress=None if row["progress"] is None else msgspec.json.decode(row["progress"], type=wire.Progress),
        parked="" if held is None else held.parked,
        as_of_ms=None if held is None else held.agent.heartbeat_ms,
    )  # fmt: skip


def job_event(job: str, row: engine.Row) -> api.JobEvent:
    """One line of a timeline."""
    return api.JobEvent(
        number=row["number"], at_ms=row["at_ms"], task_id=None if row["task"] is None else f"{job}.{row['task']}",
        state=None if row["state"] is None else State(row["state"]), text=row["text"],
    )  # fmt: skip


def artifact(row: engine.Row) -> wire.ArtifactInfo:
    """One artifact."""
    return wire.ArtifactInfo(name=row["name"], size=row["size"], sha256=row["sha256"], kind=row["kind"])


def token(row: engine.Row, now_ms: int) -> api.TokenView:
    """A token without its text."""
    return api.TokenView(
        id=row["public_id"], organization=row["organization"], role=row["role"],
        labels=msgspec.json.decode(row["labels"]), state=_token_state(row, now_ms), created_ms=row["created_ms"],
        expires_ms=row["expires_ms"], used_ms=row["used_ms"], used_by=row["used_by"], agent_id=row["agent"],
        refused=row["refused"],
    )  # fmt: skip


def _token_state(row: engine.Row, now_ms: int) -> Any:
    if row["used_ms"] is not None:
        return "used"
    if row["revoked_ms"] is not None:
        return "revoked"
    return "expired" if row["expires_ms"] <= now_ms else "unused"


def agent_view(control: plane.Plane, agent: fleet.Agent) -> api.AgentView:
    """An agent."""
    state: Any = agent.state
    newest, _ = releases.newest(control, channel=agent.channel, machine=str(agent.facts.get("architecture", "")))
    return api.AgentView(
        id=agent.public_id, organization=agent.organization, hostname=agent.hostname, instance=agent.instance,
        role=agent.role, labels=agent.labels, state=state,
        state_reason=agent.state_reason or _host_drain(agent),
        draining_by_host=agent.is_draining,
        online=control.fleet.is_online(agent, control.clock.boot()), last_heartbeat_ms=agent.heartbeat_ms,
        version=agent.version, executor=agent.executor, runners=agent.runners, guarantees=agent.guarantees,
        max_concurrent_tasks=min(agent.max_concurrent_tasks, agent.license_tasks), tasks=sorted(agent.held),
        session=agent.session, created_ms=agent.created_ms, host=agent.host, facts=agent.facts,
        channel=agent.channel, newest=newest, behind=releases.is_behind(agent.version, newest or agentina.__version__),
        pinned=agent.pinned, host_pinned=agent.host_pinned, update_window=agent.update_window, update=agent.update,
        configuration=agent.configured.version, configuration_wanted=agent.configured.wanted,
        configuration_report=agent.configured.report,
    )  # fmt: skip


def organization(row: engine.Row, agents: int) -> api.OrganizationView:
    """A tenant."""
    return api.OrganizationView(
        name=row["name"], plan=row["plan"], max_agents=row["max_agents"],
        max_concurrent_tasks_per_agent=row["max_concurrent_tasks_per_agent"], channel=row["channel"],
        offline_grace_hours=row["offline_grace_hours"], agents=agents,
    )  # fmt: skip


def operator(row: engine.Row) -> api.OperatorView:
    """Somebody who may use the API."""
    return api.OperatorView(
        name=row["name"], role=row["role"], state="active" if row["revoked_ms"] is None else "revoked",
        created_ms=row["created_ms"], revoked_ms=row["revoked_ms"],
    )  # fmt: skip


def audit_entry(row: engine.Row) -> api.AuditEntry:
    """One audit record."""
    return api.AuditEntry(
        number=row["number"], at_ms=row["at_ms"], actor=row["actor"], action=row["action"], subject=row["subject"],
        detail=msgspec.json.decode(row["detail"]), hash=row["hash"],
    )  # fmt: skip


def _host_drain(agent: fleet.Agent) -> str:
    if not agent.is_draining:
        return ""
    return f"draining by its host{': ' + agent.drain_reason if agent.drain_reason else ''}"

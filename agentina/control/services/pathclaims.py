"""Jobs that change the same paths of a repository do not run at the same time, within one transaction.

| event | then |
| --- | --- |
| a job is to be given to an agent | no job held by an agent claims a path of its: it is, and holds its claim; else it waits (``waiting-for-paths``), or is given with a warning in its timeline, as its scope says |
| its task has ended, or came back | its claim is let go; those that waited for it and meet no other are ready |
| the control plane is restarted | claims are held by what is stored; who waits is looked at again |

A job that waits is out of the queue, so that it hides none behind it, and is looked at again each time a claim on its
repository is let go.
"""
# ruff: noqa: E501 - a table

from __future__ import annotations

import msgspec

from agentina import errors
from agentina.control import pathrules
from agentina.control.services import anomalies, changes
from agentina.control.store import anomalies as store_anomalies
from agentina.control.store import engine, jobs, pathclaims, tasks
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol import wire
from agentina.protocol.states import Reason, State

#: Jobs and paths named in a sentence.
_MOST_NAMED = 3


def of_spec(spec: protocol_jobs.JobSpec) -> tuple[str, list[str]]:
    """Repository and paths that a job claims; no paths: it claims nothing."""
    if spec.workspace.git is None:
        return "", []
    return pathrules.repository(spec.workspace.git), pathrules.claimed(spec.scope.paths)


def submit(work: changes.Work, job: jobs.Job, spec: protocol_jobs.JobSpec) -> None:
    """Store the claim of a new, stored job."""
    name, paths = of_spec(spec)
    only_warns = spec.scope.overlap == "warn"
    pathclaims.insert(work.tx, pathclaims.Claim(job.id, job.public_id, job.organization_id, name, paths, only_warns))


def may_run(work: changes.Work, job: jobs.Job) -> bool:
    """Whether a ready job may be given to an agent now; it holds its claim then, and waits otherwise."""
    own = pathclaims.find(work.tx, job.id) if job.claims_paths else None
    if own is None:
        return True
    others = meeting(work.tx, own)
    if others and not own.only_warns:
        job.ready, job.reason, job.detail = False, Reason.WAITING_FOR_PATHS, describe(own, others)
        job.tell(f"waits: {job.detail}", state=State.QUEUED, now_ms=work.now_ms)
        work.effects.jobs.add(job.public_id)
        jobs.save(work.tx, job)
        return False
    if others:
        job.tell(f"runs all the same: {describe(own, others)}", now_ms=work.now_ms)
    pathclaims.hold(work.tx, job.id, is_held=True)
    return True


def release(work: changes.Work, job: jobs.Job) -> None:
    """No agent has the job any more, or it has ended: let those run that waited for it."""
    own = pathclaims.find(work.tx, job.id) if job.claims_paths else None
    if own is None:
        return
    pathclaims.hold(work.tx, job.id, is_held=False)
    freed: list[tuple[jobs.Job, pathclaims.Claim]] = []
    for other in pathclaims.waiting(work.tx, own.organization, own.repository):
        claim = None if other.id == job.id else pathclaims.find(work.tx, other.id)
        if claim is None or meeting(work.tx, claim) or any(_goes_before(one, other, claim) for one in freed):
            continue
        freed.append((other, claim))
        other.ready, other.reason, other.detail = True, Reason.WAITING_FOR_AGENT, ""
        other.tell("the paths it changes are free; ready to run", state=State.QUEUED, now_ms=work.now_ms)
        jobs.save(work.tx, other)
        work.effects.ready.append((other.class_id, other.memory_bytes))
        work.effects.jobs.add(other.public_id)


def _goes_before(freed: tuple[jobs.Job, pathclaims.Claim], job: jobs.Job, claim: pathclaims.Claim) -> bool:
    """Whether a job that was let go takes the paths of another before it: any agent that could take that takes it."""
    first, held = freed
    is_same_queue = first.class_id == job.class_id and first.memory_bytes <= job.memory_bytes
    return is_same_queue and bool(pathrules.meet(claim.paths, held.paths))


def compare(work: changes.Work, task: tasks.Task, changed: list[str]) -> None:
    """Compare what a task changed with what others changed, or claim, that ran at the same time.

    What both had declared is no surprise (one of them was only warned); anything else is an anomaly.
    """
    job, started = task.job, task.started_ms
    spec = msgspec.json.decode(jobs.spec(work.tx, job.id), type=protocol_jobs.JobSpec)
    name, claims = of_spec(spec)
    if not name or started is None:
        return
    own = pathclaims.Change(task.id, job.id, job.organization_id, name, changed, work.now_ms)
    undeclared = [path for path in changed if not pathrules.covers(claims, path)]
    found: dict[str, list[str]] = {}
    for other in pathclaims.changes_since(work.tx, own, started):
        common = [path for path in sorted(set(other.paths) & set(changed)) if not _both(claims, other.claims, path)]
        found |= {other.public_id: common} if common else {}
    for claim in pathclaims.held(work.tx, job.organization_id, name):
        common = [path for path in undeclared if pathrules.covers(claim.paths, path)]
        if claim.job != job.id and common:
            found[claim.public_id] = common
    pathclaims.add_change(work.tx, own)
    if not found:
        return
    source = store_anomalies.Source(
        organization_id=job.organization_id, agent_id=task.agent_id, at_ms=work.now_ms, task_id=task.public_id,
        task=None,
    )  # fmt: skip
    evidence = {other: ", ".join(paths[:20]) for other, paths in list(found.items())[: wire.MAX_EVIDENCE_ENTRIES]}
    summary = f"jobs changed the same paths of {name} at the same time"
    reported = wire.Anomaly(
        id=f"paths:{task.public_id}", kind="path-overlap", code=errors.PATHS_OVERLAP.code, summary=summary,
        evidence=evidence, first_at_ms=work.now_ms,
    )  # fmt: skip
    anomalies.note(work, source, reported)
    told = "; ".join(f"{other}: {', '.join(paths[:_MOST_NAMED])}" for other, paths in list(found.items())[:_MOST_NAMED])
    job.tell(f"changed the same paths as others at the same time: {told}", task=task.number, now_ms=work.now_ms)


def _both(one: list[str], other: list[str], path: str) -> bool:
    return pathrules.covers(one, path) and pathrules.covers(other, path)


def meeting(tx: engine.Transaction, own: pathclaims.Claim) -> list[pathclaims.Claim]:
    """Held claims of other jobs that meet this one."""
    return [
        other
        for other in pathclaims.held(tx, own.organization, own.repository)
        if other.job != own.job and pathrules.meet(own.paths, other.paths)
    ]


def explain(tx: engine.Transaction, job: jobs.Job) -> str:
    """Why a job waits for others' claims now; empty: it does not."""
    own = pathclaims.find(tx, job.id) if job.claims_paths else None
    others = [] if own is None or own.only_warns else meeting(tx, own)
    return describe(own, others) if own is not None and others else ""


def describe(own: pathclaims.Claim, others: list[pathclaims.Claim]) -> str:
    """Which jobs claim which paths of this one's."""
    named = []
    for other in others[:_MOST_NAMED]:
        pairs = pathrules.meet(own.paths, other.paths)
        paths = ", ".join(dict.fromkeys(theirs for _, theirs in pairs[:_MOST_NAMED]))
        named.append(f"{other.public_id} changes {paths}")
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    return f"{'; '.join(named)}{more} in {own.repository}"

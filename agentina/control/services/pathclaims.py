"""Jobs that change the same paths of a repository do not run at the same time, within one transaction.

| event | then |
| --- | --- |
| a job is to be given to an agent | no job held by an agent, or waiting before it, claims a path of its: it is, and holds its claim; else it waits (``waiting-for-paths``), or is given with a warning in its timeline, as its scope says |
| its task has ended, or came back | its claim is let go; those that waited for it and meet no other, held or waiting before them, are ready |
| the control plane is restarted | claims are held by what is stored; who waits is looked at again |

A job that waits is out of the queue, so that it hides none behind it, and is looked at again each time a claim on its
repository is let go. Each waits only for what is held and for those before it (by priority, then age), so no two wait
for each other. One that is freed keeps its paths for nobody: its agent may never come.
"""
# ruff: noqa: E501 - a table

from __future__ import annotations

import itertools

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
    claim = pathclaims.Claim(job.id, job.public_id, job.organization_id, name, paths, only_warns, job.priority)
    pathclaims.insert(work.tx, claim)


class Line:
    """Who holds paths and who waits for them, as of one transaction; read from the database when it matters."""

    def __init__(self, tx: engine.Transaction) -> None:
        self._tx = tx
        self._known: dict[tuple[int, str], pathrules.Index[pathclaims.Claim]] = {}

    def in_the_way(self, own: pathclaims.Claim) -> list[pathclaims.Claim]:
        """Claims that meet this one: those held by others, and those of jobs that wait and come before it.

        Without the latter one that claims much would wait for ever beside many, one after the other, that claim little.
        """
        found = {
            other.job: other
            for other in self._of(own).find(own.paths)
            if other.job != own.job and (other.is_held or (other.place < own.place and not own.only_warns))
        }
        return sorted(found.values(), key=lambda other: (not other.is_held, other.place))

    def add(self, claim: pathclaims.Claim) -> None:
        """A job holds its claim, or waits, from now on."""
        self._of(claim).add(claim.paths, claim)

    def _of(self, claim: pathclaims.Claim) -> pathrules.Index[pathclaims.Claim]:
        key = claim.organization, claim.repository
        if key not in self._known:
            self._known[key] = pathrules.Index()
            for other in (*pathclaims.held(self._tx, *key), *pathclaims.waiting(self._tx, *key)):
                self._known[key].add(other.paths, other)
        return self._known[key]


def may_run(work: changes.Work, job: jobs.Job, line: Line) -> bool:
    """Whether a ready job may be given to an agent now; it holds its claim then, and waits otherwise."""
    own = pathclaims.find(work.tx, job.id) if job.claims_paths else None
    if own is None:
        return True
    others = line.in_the_way(own)
    is_free = own.only_warns or not others
    pathclaims.stand(work.tx, job.id, is_held=is_free, waits=not is_free)
    line.add(own._replace(is_held=is_free))
    if others and is_free:
        job.tell(f"runs all the same: {describe(own, others)}", now_ms=work.now_ms)
    elif others:
        job.ready, job.reason, job.detail = False, Reason.WAITING_FOR_PATHS, describe(own, others)
        job.tell(f"waits: {job.detail}", state=State.QUEUED, now_ms=work.now_ms)
        work.effects.jobs.add(job.public_id)
        jobs.save(work.tx, job)
    return is_free


def release(work: changes.Work, job: jobs.Job) -> None:
    """No agent has the job any more, or it has ended: let those run that waited for it."""
    own = pathclaims.find(work.tx, job.id) if job.claims_paths else None
    if own is None:
        return
    pathclaims.stand(work.tx, job.id, is_held=False, waits=False)
    waiting = pathclaims.waiting(work.tx, own.organization, own.repository)
    if not waiting:
        return
    in_line: pathrules.Index[None] = pathrules.Index()
    for held in pathclaims.held(work.tx, own.organization, own.repository):
        in_line.add(held.paths, None)
    # Whoever waits for neither this one nor one that is freed by it waits on.
    freed: pathrules.Index[jobs.Job | None] = pathrules.Index()
    freed.add(own.paths, None)
    for claim in waiting:
        met = list(freed.find(claim.paths))
        other = None if not met or any(True for _ in in_line.find(claim.paths)) else jobs.by_id(work.tx, claim.job)
        if other is None or any(first is not None and _goes_before(first, other) for first in met):
            in_line.add(claim.paths, None)
        else:
            freed.add(claim.paths, other)
            _free(work, other)


def _free(work: changes.Work, job: jobs.Job) -> None:
    job.ready, job.reason, job.detail = True, Reason.WAITING_FOR_AGENT, ""
    job.tell("the paths it changes are free; ready to run", state=State.QUEUED, now_ms=work.now_ms)
    jobs.save(work.tx, job)
    pathclaims.stand(work.tx, job.id, is_held=False, waits=False)
    work.effects.ready.append((job.class_id, job.memory_bytes))
    work.effects.jobs.add(job.public_id)


def _goes_before(first: jobs.Job, job: jobs.Job) -> bool:
    """Whether of two that are free, and meet, the first takes the paths: any agent that could take the other takes it."""
    return first.class_id == job.class_id and first.memory_bytes <= job.memory_bytes


def compare(work: changes.Work, task: tasks.Task, changed: list[str]) -> None:
    """Compare what a task changed with what others changed, or claim, that ran at the same time.

    What both had declared is no surprise (one of them was only warned); anything else is an anomaly.
    """
    job, began = task.job, tasks.work_began_ms(work.tx, task)
    spec = msgspec.json.decode(jobs.spec(work.tx, job.id), type=protocol_jobs.JobSpec)
    name, claims = of_spec(spec)
    if not name or began is None:
        return
    own = pathclaims.Change(task.id, job.id, job.organization_id, name, changed, work.now_ms)
    undeclared = [path for path in changed if not pathrules.covers(claims, path)]
    found: dict[str, list[str]] = {}
    for other in pathclaims.changes_since(work.tx, own, began):
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


def explain(tx: engine.Transaction, job: jobs.Job) -> str:
    """Why a job waits for others' claims now; empty: it does not."""
    own = pathclaims.find(tx, job.id) if job.claims_paths else None
    others = [] if own is None or own.only_warns else Line(tx).in_the_way(own)
    return describe(own, others) if own is not None and others else ""


def describe(own: pathclaims.Claim, others: list[pathclaims.Claim]) -> str:
    """Which jobs claim which paths of this one's."""
    named = []
    for other in others[:_MOST_NAMED]:
        pairs = itertools.islice(pathrules.meet(own.paths, other.paths), _MOST_NAMED)
        paths = ", ".join(dict.fromkeys(theirs for _, theirs in pairs))
        named.append(f"{other.public_id} {'changes' if other.is_held else 'waits before it, for'} {paths}")
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    return f"{'; '.join(named)}{more} in {own.repository}"

"""Audit of work: who asked for what, and what it touched.

Only jobs that reach beyond their own task are in it: AI agents, and those with a repository, hosts or a budget. What a
plain command of no network does is in its job's timeline; a record for each would double what a submission costs.
"""

from __future__ import annotations

from typing import Any, Final

from agentina.control import pathrules
from agentina.control.services import changes
from agentina.control.store import agents, audit, jobs, tasks
from agentina.protocol import budgets, wire
from agentina.protocol import jobs as protocol_jobs

#: Most names in one list of a record; how many there are is in it as well.
_MOST: Final = 50


def asked(work: changes.Work, actor: str, job: jobs.Job, spec: protocol_jobs.JobSpec) -> None:
    """Somebody submitted a job."""
    if spec.runner == "command" and spec.budget is None and not spec.scope.hosts and spec.workspace.git is None:
        return
    # Without what an address may have in it of user and password.
    repository = "" if spec.workspace.git is None else pathrules.repository(spec.workspace.git)
    detail: dict[str, Any] = {
        "name": spec.name, "runner": spec.runner, "model": spec.payload.model, "repository": repository,
        "hosts": _some(spec.scope.hosts), "paths": _some(spec.scope.paths), "budget": spec.budget,
    }  # fmt: skip
    audit.append(
        work.tx, actor=actor, action="job.submit", subject=job.public_id, detail=_said(detail), now_ms=work.now_ms
    )


def touched(work: changes.Work, task: tasks.Task, outcome: wire.Outcome) -> None:
    """A task has ended, and this is what it did beyond its own directory."""
    if not (outcome.commit or outcome.changed or outcome.hosts or outcome.models or outcome.agent):
        return
    used = budgets.add(outcome.models)
    detail: dict[str, Any] = {
        "commit": outcome.commit, "changed": _some(outcome.changed), "hosts": _some(outcome.hosts),
        "models": _some(sorted({row.model for row in outcome.models})), "tokens": used.tokens,
        "cost_nano": used.cost_nano, "state": outcome.state.value,
    }  # fmt: skip
    actor = f"agent:{agents.by_id(work.tx, task.agent_id)['public_id']}"
    audit.append(
        work.tx, actor=actor, action="task.end", subject=task.public_id, detail=_said(detail), now_ms=work.now_ms
    )


def _said(detail: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in detail.items() if value}


def _some(names: list[str]) -> list[str]:
    """The first of many names, and how many are left out."""
    return names if len(names) <= _MOST else [*names[:_MOST], f"and {len(names) - _MOST} more"]

"""``agentina job``: submit, follow and manage jobs."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from agentina import errors
from agentina.cli import agent_run, budget, connection, following, job_submit, lazy, options, output, report
from agentina.client import api as api_client
from agentina.protocol import api, budgets, names, states, units, wire


@click.group(cls=lazy.NounGroup)
def job() -> None:
    """Submit, follow and manage jobs."""


job.add_command(job_submit.submit)
job.add_command(job_submit.run)


@job.command("list", epilog=options.examples("agentina job list", "agentina job list --state failed --all --json"))
@click.option("--state", type=click.Choice([state.value for state in states.State]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many, newest first.")
@click.option("--all", "everything", is_flag=True, help="All of them, page after page.")
@options.root_option
@options.json_option
def list_jobs(state: str | None, limit: int, *, everything: bool, as_json: bool) -> None:
    """List jobs, newest first."""
    listed: list[api.JobSummary] = []
    after: str | None = None
    with connection.open_client() as client:
        while True:
            page = client.list_jobs({"state": state, "limit": limit, "after": after})
            listed += page.jobs
            after = page.next
            if after is None or not everything:
                break
    if as_json:
        output.document(api.JobList(jobs=listed, next=after))
        return
    rows = [
        (
            line.id, line.state.value, line.name, line.agent or "-", output.moment(line.created_ms), _took(line),
            _why(line),
        )
        for line in listed
    ]  # fmt: skip
    output.table(("ID", "STATE", "NAME", "AGENT", "CREATED", "TOOK", "WHY"), rows, ends_in_prose=True)
    if after is not None:
        output.say(f"There are more than {limit}: use --all or --limit.")


@job.command(epilog=options.examples("agentina job show job_0123456789abcdef"))
@click.argument("job_id", metavar="JOB")
@options.root_option
@options.json_option
def show(job_id: str, *, as_json: bool) -> None:
    """Show a job: state, attempts, timeline, artifacts, and why it waits."""
    with connection.open_client() as client:
        view = client.get_job(job_id)
        left = client.get_budget("job", job_id) if view.spec.budget is not None and not as_json else None
    if as_json:
        output.document(view)
    else:
        render(view, left=left)


@job.command(epilog=options.examples("agentina job logs -f job_0123456789abcdef", "agentina job logs JOB --task JOB.1"))
@click.argument("job_id", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended, then end as it ended.")
@click.option("--task", metavar="TASK", help="This attempt's output; the newest attempt's unless given.")
@options.root_option
def logs(job_id: str, task: str | None, *, follow: bool) -> int:
    """Print a job's output as it was written."""
    write = job_submit.writer(sys.stdout.buffer)
    with connection.open_client() as client:
        if follow and task is None:
            view = following.follow(client, job_id, write=write)
            output.say(following.outcome_line(view))
            return following.exit_code(view)
        copy_output(client, job_id, task=task, wait=20.0 if follow else 0.0, write=write)
    return int(errors.Exit.OK)


@job.command(epilog=options.examples("agentina job artifacts JOB", "agentina job artifacts JOB --output results/"))
@click.argument("job_id", metavar="JOB")
@click.option(
    "--output",
    "-o",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Fetch them into this directory.",
)
@options.root_option
@options.json_option
def artifacts(job_id: str, directory: Path | None, *, as_json: bool) -> None:
    """List the files a job left, or fetch them (each is checked against its SHA-256)."""
    with connection.open_client() as client:
        listed = client.list_artifacts(job_id)
        if directory is not None:
            for item in listed:
                output.say(f"{output.clean(item.name)} ({units.show_size(item.size)})")
                fetch(client, job_id, item, directory)
    if as_json:
        output.document({"artifacts": [_artifact(item) for item in listed]})
        return
    rows = [(item.name, item.kind, units.show_size(item.size), item.sha256) for item in listed]
    output.table(("NAME", "KIND", "SIZE", "SHA-256"), rows)


@job.command(epilog=options.examples("agentina job cancel JOB --reason 'wrong branch'"))
@click.argument("job_id", metavar="JOB")
@click.option("--reason", default="", help="Kept in the job's timeline.")
@options.root_option
@options.json_option
def cancel(job_id: str, reason: str, *, as_json: bool) -> None:
    """End a job that waits or runs."""
    with connection.open_client() as client:
        view = client.cancel_job(job_id, reason=reason)
    if as_json or view.job.state in states.FINAL:
        _acted(view, as_json=as_json)
    else:
        output.answer(f"{view.job.id} {view.job.state.value}: its agent was told to end it; see `agentina job show`.")


@job.command(epilog=options.examples("agentina job checkpoint JOB"))
@click.argument("job_id", metavar="JOB")
@options.root_option
@options.json_option
def checkpoint(job_id: str, *, as_json: bool) -> None:
    """Have a checkpoint taken of a job that runs; it goes on from there should its host be lost."""
    with connection.open_client() as client:
        view = client.checkpoint_job(job_id)
    if as_json:
        output.document(view)
    else:
        output.answer(
            f"{view.job.id}: its agent was asked for a checkpoint; `agentina job show` tells when it is stored."
        )


@job.command(epilog=options.examples("agentina job retry JOB"))
@click.argument("job_id", metavar="JOB")
@options.root_option
@options.json_option
def retry(job_id: str, *, as_json: bool) -> None:
    """Run an ended job again, with fresh attempts."""
    with connection.open_client() as client:
        view = client.retry_job(job_id)
    _acted(view, as_json=as_json)


@job.command(epilog=options.examples("agentina job schema > job.schema.json"))
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    from agentina.protocol import jobs

    output.document(jobs.schema())


def copy_output(
    client: api_client.Client, job_id: str, *, task: str | None, wait: float, write: following.Write
) -> None:
    """Write what there is of one attempt's output; with ``wait`` until it is complete."""
    offset = 0
    while True:
        piece = client.get_output(job_id, task=task, offset=offset, wait=wait)
        if piece.data:
            write(piece.data)
        offset = piece.offset
        if not piece.data and (piece.final or not wait):
            return


def fetch(client: api_client.Client, job_id: str, item: wire.ArtifactInfo, directory: Path) -> Path:
    """Fetch one artifact below ``directory``; it appears there only when complete and verified.

    Raises:
        AgentinaError: ``NAME_INVALID`` for a name that would leave the directory, ``ARTIFACT_CORRUPT``,
            ``STATE_UNWRITABLE`` or ``DISK_FULL``.

    """
    from agentina.system import files

    target = directory / names.check_artifact(item.name)
    partial = target.with_name(f".{target.name[:200]}.part")
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _refuse_outside(target, directory)
        with partial.open("wb") as file:

            def keep(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)

            client.read_artifact(job_id, item.name, keep)
        if digest.hexdigest() != item.sha256:
            partial.unlink()
            raise errors.ARTIFACT_CORRUPT(name=item.name, found=digest.hexdigest(), expected=item.sha256)
        partial.replace(target)
    except OSError as error:
        raise files.from_os_error(error, target) from error
    return target


def render(view: api.JobView, *, left: budgets.BudgetView | None = None) -> None:
    """Print everything about a job for people; ``left``: its budget."""
    summary = view.job
    output.answer(f"{summary.id}  {output.clean(summary.name)}")
    output.pairs(
        [
            (
                "state",
                f"{output.paint(summary.state.value)}: {_why(summary)}",
            ),
            ("reason", summary.reason.value),
            ("organization", summary.organization),
            ("role", summary.role),
            ("labels", output.labels(view.spec.labels) if view.spec.labels else ""),
            ("priority", summary.priority),
            ("created", output.moment(summary.created_ms)),
            ("started", output.moment(summary.started_ms)),
            ("ended", output.moment(summary.ended_ms)),
            ("runner", "" if view.spec.runner == "command" else view.spec.runner),
            ("workspace", _workspace(view)),
            ("limits", _limits(view)),
            ("progress", _progress(view)),
            ("as of", _as_of(view)),
            ("budget", "" if left is None else budget.sentence(left)),
            ("dead letter", _dead_letter(view)),
        ],
        indent=2,
    )
    for task in view.tasks:
        if task.parked:
            output.answer(f"  parked: {output.clean(task.parked)}; `agentina budget raise` lets it go on")
    for blocker in view.blockers:
        output.answer(f"  waits: {output.clean(blocker)}")
    if view.tasks:
        output.answer()
        output.table(
            ("ATTEMPT", "STATE", "AGENT", "STARTED", "EXIT", "CPU", "MEMORY", "NETWORK", "OUTPUT", "WHY"),
            _task_rows(view),
            ends_in_prose=True,
        )
    runs = (task.outcome.agent if task.outcome else task.run for task in reversed(view.tasks))
    run = next(filter(None, runs), None)
    if run is not None:
        output.answer()
        agent_run.render(run, is_resumed=view.spec.payload.resume is not None)
    if view.usage:
        output.answer()
        report.table(view.usage, headers=("MODEL", ""), total=budgets.add(view.usage))
        for remark in report.remarks(budgets.add(view.usage)):
            output.answer(f"  {remark}")
    if view.artifacts:
        output.answer()
        rows = [(item.name, item.kind, units.show_size(item.size)) for item in view.artifacts]
        output.table(("ARTIFACT", "KIND", "SIZE"), rows)
    if view.events:
        output.answer()
        events = [(output.moment(event.at_ms), event.task_id or "-", event.text) for event in view.events]
        output.table(("WHEN", "TASK", "WHAT"), events, ends_in_prose=True)


def _task_rows(view: api.JobView) -> list[tuple[Any, ...]]:
    rows = []
    for task in view.tasks:
        outcome = task.outcome
        usage = outcome.usage if outcome else wire.Usage()
        carried = usage.network_received_bytes
        ended = None if outcome is None else (outcome.signal or outcome.exit_code)
        rows.append(
            (
                task.number, task.state.value, task.agent, output.moment(task.started_ms),
                "-" if ended is None else ended,
                "-" if usage.cpu_seconds is None else units.show_duration(usage.cpu_seconds),
                "-" if usage.memory_peak_bytes is None else units.show_size(usage.memory_peak_bytes),
                "-" if carried is None else units.show_size(carried + (usage.network_sent_bytes or 0)),
                units.show_size(task.output_bytes),
                # Of a success the columns tell everything.
                "-" if task.state is states.State.SUCCEEDED else task.detail or states.REASONS[task.reason],
            )
        )  # fmt: skip
    return rows


def _as_of(view: api.JobView) -> str:
    """How new is what a running attempt used, and how far its agent is."""
    heard_ms = view.tasks[-1].as_of_ms if view.tasks else None
    told = view.usage or view.spec.budget is not None or (view.tasks and view.tasks[-1].run is not None)
    return f"{output.moment(heard_ms)}, when its host was heard of last" if told and heard_ms is not None else ""


def _progress(view: api.JobView) -> str:
    """What the newest attempt said of itself last."""
    told = view.tasks[-1].progress if view.tasks else None
    if told is None:
        return ""
    percent = "" if told.percent is None else f"{told.percent:.0f} %: "
    return f"{percent}{output.clean(told.text)} ({output.moment(told.at_ms)})"


def _workspace(view: api.JobView) -> str:
    space = view.spec.workspace
    return f"{output.clean(space.git)} at {output.clean(space.ref)}" if space.git else "an empty directory"


def _limits(view: api.JobView) -> str:
    spec = view.spec
    memory, timeout = units.show_size(spec.memory_bytes), units.show_duration(spec.limits.timeout)
    return f"{memory} memory, {spec.cpus:g} CPU, {timeout}, {spec.retry.max_attempts} attempts"


def _dead_letter(view: api.JobView) -> str:
    """Why nothing is tried any more, and what a person can do."""
    if not view.dead_letter:
        return ""
    retry = view.spec.retry
    is_repeated = view.job.state.value in retry.on
    why = "all attempts are used" if is_repeated else f"its retry is for {' or '.join(retry.on) or 'nothing'}"
    return f"yes: {why}; `agentina job retry` runs it again"


def _why(summary: api.JobSummary) -> str:
    return output.clean(summary.detail) or states.REASONS[summary.reason]


def _took(line: api.JobSummary) -> str:
    if line.started_ms is None or line.ended_ms is None:
        return "-"
    return units.show_duration(max(line.ended_ms - line.started_ms, 0) / 1000)


def _acted(view: api.JobView, *, as_json: bool) -> None:
    if as_json:
        output.document(view)
    else:
        output.answer(f"{view.job.id} {view.job.state.value}: {_why(view.job)}")


def _artifact(item: wire.ArtifactInfo) -> dict[str, Any]:
    return {"name": item.name, "kind": item.kind, "size": item.size, "sha256": item.sha256}


def _refuse_outside(target: Path, directory: Path) -> None:
    """A symbolic link that lies in the directory already must not lead the file elsewhere."""
    inside = os.path.realpath(directory)
    if os.path.commonpath([inside, os.path.realpath(target.parent)]) != inside or target.is_symlink():
        raise errors.NAME_INVALID(what="artifact", value=str(target)[:80], rule="a path that stays in the directory")

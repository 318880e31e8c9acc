"""Routes of the operator API about jobs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.control.api import routing
from agentina.control.services import checkpoints, views
from agentina.control.services import jobs as job_service
from agentina.control.store import engine, jobs, registry, tasks
from agentina.protocol import api
from agentina.protocol import jobs as protocol_jobs
from agentina.protocol.states import FINAL, State

_OUTPUT_PIECE: Final = 1 << 20
_MAX_PAGE: Final = 500
_WAIT: Final = routing.Query(name="wait", kind=float, default=0.0, maximum=60)


async def submit(call: routing.Call) -> api.JobCreated:
    """Store a job; the same idempotency key makes it once."""
    key = call.headers.get(b"idempotency-key")
    submission = _submission(call, call.body, None if key is None else key.decode("latin-1"))
    return (await job_service.submit(call.control, [submission]))[0]


async def submit_many(call: routing.Call) -> api.JobsCreated:
    """Store jobs, all of them or none, in one transaction."""
    submissions = []
    for number, item in enumerate(call.body.jobs):
        try:
            submissions.append(_submission(call, bytes(item.job), item.idempotency_key))
        except errors.AgentinaError as error:
            # The same path within the job, and which one it is.
            where = str(error.context.get("where", "job")).removeprefix("job")
            raise errors.AgentinaError(error.entry, {**error.context, "where": f"jobs[{number}].job{where}"}) from error
    return api.JobsCreated(jobs=await job_service.submit(call.control, submissions))


def _submission(call: routing.Call, body: bytes, key: str | None) -> job_service.Submission:
    """What one document says, in the words people may write it in.

    Raises:
        AgentinaError: ``INPUT_UNREADABLE``, ``INPUT_TOO_LARGE``, and what :func:`protocol_jobs.parse_job` raises.

    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.INPUT_UNREADABLE(where="job", problem=str(error) or "nested too deeply") from error
    if len(body) > protocol_jobs.MAX_JOB_BYTES:
        raise errors.INPUT_TOO_LARGE(where="job", size=len(body), limit=protocol_jobs.MAX_JOB_BYTES)
    organization = call.query["organization"]
    return job_service.Submission(
        spec=protocol_jobs.parse_job(document), organization=organization, key=key, actor=call.actor
    )


async def list_jobs(call: routing.Call) -> api.JobList:
    """A page of jobs."""
    state, after, limit = call.query["state"], call.query["after"], call.query["limit"]
    organization = call.query["organization"]
    if state is not None and state not in {known.value for known in State}:
        raise errors.INPUT_INVALID(where="query.state", problem=f"{state[:40]!r} is no state")

    def read(tx: engine.Transaction) -> list[engine.Row]:
        # No jobs would look like nothing being asked for.
        if organization is not None:
            registry.get_organization(tx, organization)
        before = jobs.get(tx, after).id if after is not None else None
        return jobs.summaries(tx, state=state, organization=organization, before=before, limit=limit + 1)

    rows = call.control.store.read(read)
    page = [views.job_summary(row) for row in rows[:limit]]
    return api.JobList(jobs=page, next=page[-1].id if len(rows) > limit else None)


async def show(call: routing.Call) -> api.JobView:
    """Everything about one job."""
    return views.job_view(call.control, call.parameters["job"])


async def events(call: routing.Call) -> api.JobEvents:
    """The timeline after a number; waits while there is nothing new."""
    public_id, after = call.parameters["job"], call.query["after"]

    def read(tx: engine.Transaction) -> api.JobEvents:
        job = jobs.get(tx, public_id)
        lines = jobs.events(tx, job.id, after=after, limit=_MAX_PAGE)
        return api.JobEvents(
            state=job.state, final=job.state in FINAL,
            task_id=f"{public_id}.{job.tasks}" if job.tasks else None,
            events=[views.job_event(public_id, line) for line in lines],
        )  # fmt: skip

    found = call.control.store.read(read)
    if not found.events and not found.final and call.query["wait"] > 0:
        await call.control.bells.wait(public_id, call.query["wait"])
        found = call.control.store.read(read)
    return found


async def output(call: routing.Call) -> routing.Reply:
    """Output from an offset; waits while there is nothing new."""
    offset = call.query["offset"]
    task_id, is_ended, piece = _read_output(call, offset)
    if not piece and not is_ended and call.query["wait"] > 0:
        await call.control.bells.wait(call.parameters["job"], call.query["wait"])
        task_id, is_ended, piece = _read_output(call, offset)
    is_final = is_ended and len(piece) < _OUTPUT_PIECE
    return routing.Reply(
        body=piece,
        headers=[
            (b"agentina-offset", b"%d" % (offset + len(piece))),
            (b"agentina-final", b"true" if is_final else b"false"),
            (b"agentina-task", task_id.encode()),
        ],
    )


def _read_output(call: routing.Call, offset: int) -> tuple[str, bool, bytes]:
    """The task's id (empty: none yet), whether nothing more will come, and the piece at the offset."""
    public_id, wanted = call.parameters["job"], call.query["task"]

    def read(tx: engine.Transaction) -> tuple[str, bool]:
        job = jobs.get(tx, public_id)
        if wanted is None:
            number = job.tasks
        else:
            name, _, text = wanted.partition(".")
            number = int(text) if name == public_id and text.isascii() and text.isdigit() and len(text) < 7 else 0  # noqa: PLR2004
        task = tasks.find(tx, public_id, number)
        if task is None:
            if wanted is not None:
                raise errors.TASK_UNKNOWN(task=wanted[:40])
            return "", job.state in FINAL
        return f"{public_id}.{number}", task.ended_ms is not None

    task_id, is_ended = call.control.store.read(read)
    piece = call.control.blobs.read_output(task_id, offset, _OUTPUT_PIECE) if task_id else b""
    return task_id, is_ended, piece


async def list_artifacts(call: routing.Call) -> api.ArtifactList:
    """List a job's artifacts."""

    def read(tx: engine.Transaction) -> list[engine.Row]:
        return tasks.artifacts_of_job(tx, jobs.get(tx, call.parameters["job"]).id)

    return api.ArtifactList(artifacts=[views.artifact(row) for row in call.control.store.read(read)])


async def get_artifact(call: routing.Call) -> routing.Reply:
    """Stream one artifact."""
    public_id, name = call.parameters["job"], call.parameters["name"]

    def read(tx: engine.Transaction) -> engine.Row:
        rows = tasks.artifacts_of_job(tx, jobs.get(tx, public_id).id)
        row = next((row for row in rows if row["name"] == name), None)
        if row is None:
            raise errors.ARTIFACT_UNKNOWN(job=public_id, name=name[:240])
        return row

    row = call.control.store.read(read)
    path = call.control.blobs.artifact_path(f"{public_id}.{row['number']}", name)

    async def pieces() -> AsyncGenerator[bytes, None]:
        for offset in range(0, row["size"], _OUTPUT_PIECE):
            yield await call.control.blobs.read_piece(path, offset, _OUTPUT_PIECE)

    headers = [(b"content-length", b"%d" % row["size"]), (b"agentina-sha256", row["sha256"].encode())]
    return routing.Reply(body=pieces(), headers=headers)


async def cancel(call: routing.Call) -> api.JobView:
    """End a job."""
    reason = call.body.reason if call.body is not None else ""
    job = await job_service.cancel(call.control, call.parameters["job"], actor=call.actor, reason=reason)
    return views.job_view(call.control, job)


async def retry(call: routing.Call) -> api.JobView:
    """Queue an ended job again."""
    return views.job_view(call.control, await job_service.retry(call.control, call.parameters["job"], actor=call.actor))


async def checkpoint(call: routing.Call) -> api.JobView:
    """Have a checkpoint taken."""
    return views.job_view(call.control, await checkpoints.ask(call.control, call.parameters["job"], actor=call.actor))


async def job_schema(_: routing.Call) -> dict[str, Any]:
    """The published JSON Schema."""
    return protocol_jobs.schema()


def routes() -> list[routing.Route]:
    """The table's part."""
    organization = routing.Query(name="organization", kind=str, default="default")
    return [
        routing.Route(
            method="POST", path="/v1/jobs", handler=submit, summary="Submit a job", auth="operator",
            request=protocol_jobs.JobSpec, answer=api.JobCreated, status=201, query=(organization,), act="job.submit",
        ),
        routing.Route(
            method="POST", path="/v1/job-batches", handler=submit_many, auth="operator",
            summary="Submit several jobs, all or none", request=api.JobBatch, answer=api.JobsCreated, status=201,
            query=(organization,), body_limit=api.MAX_BATCH_BYTES, act="job.submit",
        ),
        routing.Route(
            method="GET", path="/v1/jobs", handler=list_jobs, summary="List jobs, newest first", auth="viewer",
            answer=api.JobList,
            query=(
                routing.Query(name="state", kind=str), routing.Query(name="after", kind=str),
                routing.Query(name="organization", kind=str),
                routing.Query(name="limit", kind=int, default=100, minimum=1, maximum=_MAX_PAGE),
            ),
        ),
        routing.Route(
            method="GET", path="/v1/jobs/{job}", handler=show, summary="Everything about a job", auth="viewer",
            answer=api.JobView,
        ),
        routing.Route(
            method="GET", path="/v1/jobs/{job}/events", handler=events, summary="Follow a job's timeline",
            auth="viewer", answer=api.JobEvents, query=(routing.Query(name="after", kind=int, default=0), _WAIT),
        ),
        routing.Route(
            method="GET", path="/v1/jobs/{job}/output", handler=output, summary="Output from an offset",
            auth="viewer", answer=bytes,
            query=(
                routing.Query(name="task", kind=str), routing.Query(name="offset", kind=int, default=0), _WAIT,
            ),
        ),
        routing.Route(
            method="GET", path="/v1/jobs/{job}/artifacts", handler=list_artifacts, summary="List artifacts",
            auth="viewer", answer=api.ArtifactList,
        ),
        routing.Route(
            method="GET", path="/v1/jobs/{job}/artifacts/{name:path}", handler=get_artifact,
            summary="Content of an artifact", auth="viewer", answer=bytes,
        ),
        routing.Route(
            method="POST", path="/v1/jobs/{job}/cancel", handler=cancel, summary="Cancel a job", auth="operator",
            request=api.AgentAct | None, answer=api.JobView, act="job.cancel",
        ),
        routing.Route(
            method="POST", path="/v1/jobs/{job}/retry", handler=retry, summary="Run an ended job again",
            auth="operator", answer=api.JobView, act="job.retry",
        ),
        routing.Route(
            method="POST", path="/v1/jobs/{job}/checkpoint", handler=checkpoint,
            summary="Have a checkpoint taken of a job that runs", auth="operator", answer=api.JobView,
            act="job.checkpoint",
        ),
        routing.Route(
            method="GET", path="/v1/job-schema", handler=job_schema, summary="JSON Schema of a job", auth="public",
            answer=dict[str, Any],
        ),
    ]  # fmt: skip

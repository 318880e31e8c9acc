"""Routes of the agent API (docs/reference/protocol.md)."""

from __future__ import annotations

from typing import Final

from agentina.control.api import routing
from agentina.control.services import activation, polls, reports, sessions
from agentina.protocol import licensing, wire

_UPLOAD: Final = (
    routing.Query(name="session", kind=int, required=True),
    routing.Query(name="offset", kind=int, required=True),
)


async def activate(call: routing.Call) -> licensing.Activated:
    """Redeem an activation token."""
    return await activation.activate(call.control, call.body)


async def open_session(call: routing.Call) -> wire.SessionOpened:
    """A daemon takes over."""
    return await sessions.open_session(call.control, call.caller, call.body)


async def heartbeat(call: routing.Call) -> wire.HeartbeatAnswer:
    """Renew leases."""
    return sessions.heartbeat(call.control, call.caller, call.body)


async def poll(call: routing.Call) -> wire.PollAnswer:
    """Hold the request until there is work or an order."""
    return await polls.poll(call.control, call.caller, call.body, call.on_lost)


async def apply_reports(call: routing.Call) -> wire.ReportsApplied:
    """Apply numbered facts."""
    return await reports.apply(call.control, call.caller, call.body)


async def put_output(call: routing.Call) -> wire.PieceStored:
    """Store a piece of output."""
    return await call.uploads.output(
        call.caller, call.parameters["task"], session=call.query["session"], offset=call.query["offset"],
        piece=call.body,
    )  # fmt: skip


async def begin_artifact(call: routing.Call) -> wire.PieceStored:
    """Announce an artifact."""
    return await call.uploads.begin_artifact(call.caller, call.parameters["task"], call.body)


async def put_artifact(call: routing.Call) -> wire.PieceStored:
    """Store a piece of an artifact."""
    return await call.uploads.artifact_piece(
        call.caller, call.parameters["task"], call.parameters["name"], session=call.query["session"],
        offset=call.query["offset"], piece=call.body,
    )  # fmt: skip


async def get_checkpoint(call: routing.Call) -> routing.Reply:
    """A piece of the checkpoint that a task goes on from."""
    query = call.query
    piece = await call.uploads.checkpoint_piece(
        call.caller, call.parameters["task"], session=query["session"], of=query["of"], name=query["name"],
        offset=query["offset"],
    )  # fmt: skip
    return routing.Reply(body=piece)


def routes() -> list[routing.Route]:
    """The table's part."""
    return [
        routing.Route(
            method="POST", path="/v1/activate", handler=activate, summary="Redeem an activation token", auth="public",
            request=licensing.Activate, answer=licensing.Activated, body_limit=64 << 10,
        ),
        routing.Route(
            method="POST", path="/v1/agent/session", handler=open_session, summary="A daemon takes over", auth="agent",
            request=wire.SessionOpen, answer=wire.SessionOpened, body_limit=wire.MAX_BODY,
        ),
        routing.Route(
            method="POST", path="/v1/agent/heartbeat", handler=heartbeat, summary="Alive; renew leases", auth="agent",
            request=wire.Heartbeat, answer=wire.HeartbeatAnswer, body_limit=wire.MAX_BODY,
        ),
        routing.Route(
            method="POST", path="/v1/agent/poll", handler=poll, summary="Wait for work or orders", auth="agent",
            request=wire.Poll, answer=wire.PollAnswer, body_limit=64 << 10,
        ),
        routing.Route(
            method="POST", path="/v1/agent/reports", handler=apply_reports, summary="Numbered facts about tasks",
            auth="agent", request=wire.Reports, answer=wire.ReportsApplied, body_limit=wire.MAX_BODY,
        ),
        routing.Route(
            method="PUT", path="/v1/agent/tasks/{task}/output", handler=put_output, summary="A piece of output",
            auth="agent", request=bytes, answer=wire.PieceStored, query=_UPLOAD, body_limit=wire.MAX_PIECE,
        ),
        routing.Route(
            method="POST", path="/v1/agent/tasks/{task}/artifacts", handler=begin_artifact,
            summary="Announce an artifact", auth="agent", request=wire.ArtifactBegin, answer=wire.PieceStored,
            body_limit=64 << 10,
        ),
        routing.Route(
            method="PUT", path="/v1/agent/tasks/{task}/artifacts/{name:path}", handler=put_artifact,
            summary="A piece of an artifact", auth="agent", request=bytes, answer=wire.PieceStored, query=_UPLOAD,
            body_limit=wire.MAX_PIECE,
        ),
        routing.Route(
            method="GET", path="/v1/agent/tasks/{task}/checkpoint", handler=get_checkpoint,
            summary="A piece of the checkpoint to go on from", auth="agent", answer=bytes,
            query=(
                *_UPLOAD, routing.Query(name="of", kind=str, required=True),
                routing.Query(name="name", kind=str, required=True),
            ),
        ),
    ]  # fmt: skip

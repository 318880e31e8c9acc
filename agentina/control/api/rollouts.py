"""Routes of the operator API about rollouts."""

from __future__ import annotations

from typing import Final

from agentina.control.api import routing
from agentina.control.services import rollout_views, rollouts, views
from agentina.protocol import api

#: Longest time a request for a change is held, in seconds.
_MAX_WAIT: Final = 60
_MAX_AGENTS: Final = 10_000


async def start_rollout(call: routing.Call) -> api.RolloutView:
    """Begin one."""
    public_id = await rollouts.start(call.control, call.body, actor=call.actor)
    return await rollout_views.view(call.control, public_id, limit=_MAX_AGENTS)


async def list_rollouts(call: routing.Call) -> api.RolloutList:
    """List the newest."""
    return rollout_views.listed(call.control, limit=call.query["limit"])


async def show_rollout(call: routing.Call) -> api.RolloutView:
    """Show one; with ``revision`` and ``wait``, once it has changed since."""
    public_id, limit = call.parameters["rollout"], call.query["limit"]
    shown = await rollout_views.view(call.control, public_id, limit=limit)
    if call.query["wait"] and shown.revision <= call.query["revision"]:
        await call.control.bells.wait(rollouts.bell(public_id), call.query["wait"])
        shown = await rollout_views.view(call.control, public_id, limit=limit)
    return shown


async def _act(call: routing.Call, verb: str, reason: str) -> api.RolloutView:
    public_id = call.parameters["rollout"]
    await rollouts.act(call.control, public_id, verb, reason=reason, actor=call.actor)
    return await rollout_views.view(call.control, public_id, limit=_MAX_AGENTS)


async def skip_agent(call: routing.Call) -> api.RolloutView:
    """Leave an agent out."""
    public_id = call.parameters["rollout"]
    await rollouts.skip(call.control, public_id, call.body.agent, actor=call.actor)
    return await rollout_views.view(call.control, public_id, limit=_MAX_AGENTS)


async def pin_agent(call: routing.Call) -> api.AgentView:
    """Hold an agent to a version."""
    agent = await rollouts.pin(call.control, call.parameters["agent"], call.body.version, actor=call.actor)
    return views.agent_view(call.control, agent)


def routes() -> list[routing.Route]:
    """These routes."""
    limit = routing.Query(name="limit", kind=int, default=100, minimum=1, maximum=_MAX_AGENTS)
    follow = (
        routing.Query(name="revision", kind=int, default=0),
        routing.Query(name="wait", kind=float, default=0.0, maximum=_MAX_WAIT),
        limit,
    )
    verbs = {
        "pause": "Order nothing for a while", "resume": "Go on after a pause",
        "abort": "End it and take back what was changed",
    }  # fmt: skip
    acts = routing.acts(
        "rollout", _act, verbs, path="/v1/rollouts/{rollout}", request=api.RolloutAct, answer=api.RolloutView
    )
    return [
        routing.Route(
            method="POST", path="/v1/rollouts", handler=start_rollout, summary="Bring a release to agents, by stages",
            auth="operator", request=api.RolloutStart, answer=api.RolloutView, status=201, act="rollout.start",
        ),
        routing.Route(
            method="GET", path="/v1/rollouts", handler=list_rollouts, summary="List rollouts", auth="viewer",
            answer=api.RolloutList, query=(limit,),
        ),
        routing.Route(
            method="GET", path="/v1/rollouts/{rollout}", handler=show_rollout,
            summary="One rollout, or its next change", auth="viewer", answer=api.RolloutView, query=follow,
        ),
        *acts,
        routing.Route(
            method="POST", path="/v1/rollouts/{rollout}/skip", handler=skip_agent,
            summary="Leave an agent out that has not got it", auth="operator", request=api.RolloutSkip,
            answer=api.RolloutView, act="rollout.skip",
        ),
        routing.Route(
            method="POST", path="/v1/agents/{agent}/pin", handler=pin_agent,
            summary="Hold an agent to a version, or let it go", auth="operator", request=api.AgentPin,
            answer=api.AgentView, act="agent.pin",
        ),
    ]  # fmt: skip

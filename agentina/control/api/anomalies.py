"""Routes of the operator API about anomalies."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, Literal

from agentina import errors
from agentina.control.api import routing
from agentina.control.services import administration
from agentina.control.services import anomalies as service
from agentina.control.store import anomalies, engine, jobs, registry
from agentina.protocol import api, inputs
from agentina.protocol.anomalies import KINDS, UNRESOLVED, State

_MAX_PAGE: Final = 500
#: Longest time a request for a change is held, in seconds.
_MAX_WAIT: Final = 60
#: Time and row id of the last one on a page.
_CURSOR: Final = re.compile(r"(\d{1,16})-(\d{1,16})")


async def list_anomalies(call: routing.Call) -> api.AnomalyList:
    """A page of anomalies; with ``since`` and ``wait`` those that changed since, once there are any."""
    since, wait = call.query["since"], call.query["wait"]
    found = _page(call)
    if wait and found.revision <= since:
        await call.control.bells.wait(service.BELL, wait)
        found = _page(call)
    return found


def _page(call: routing.Call) -> api.AnomalyList:
    limit, after = call.query["limit"], call.query["after"]
    before = None
    if after is not None:
        match = _CURSOR.fullmatch(after)
        if match is None:
            raise errors.INPUT_INVALID(where="query.after", problem=f"{after[:40]!r} is no `next` of an earlier page")
        before = (int(match[1]), int(match[2]))
    wanted = _wanted(call)

    def read(tx: engine.Transaction) -> tuple[list[engine.Row], int]:
        # Nothing found would look like nothing being wrong.
        if wanted.organization is not None:
            registry.get_organization(tx, wanted.organization)
        if wanted.job is not None:
            jobs.get(tx, wanted.job)
        _check_word(tx, "kind", wanted.kind, KINDS)
        _check_word(tx, "code", wanted.code, errors.CATALOGUE)
        rows = anomalies.listed(tx, wanted, before=before, since=call.query["since"], limit=limit + 1)
        return rows, anomalies.revision(tx)

    rows, revision = call.control.store.read(read)
    page = rows[:limit]
    following = f"{page[-1]['last_ms']}-{page[-1]['id']}" if len(rows) > limit else None
    return api.AnomalyList(anomalies=[service.summary(row) for row in page], revision=revision, next=following)


def _check_word(
    tx: engine.Transaction, name: Literal["kind", "code"], word: str | None, known: Collection[str]
) -> None:
    """Refuse a word that is neither known here nor in any anomaly: hosts of newer releases have words of their own."""
    if word is None or word in known:
        return
    words = {*known, *anomalies.words(tx, name)}
    if word not in words:
        problem = f"{word[:80]!r} is no {name} of anomalies{inputs.suggest(word[:80], words)}"
        raise errors.INPUT_INVALID(where=f"query.{name}", problem=problem)


def _wanted(call: routing.Call) -> anomalies.Filter:
    query = call.query
    states: tuple[str, ...] = ()
    if query["state"] == "unresolved":
        states = tuple(state.value for state in UNRESOLVED)
    elif query["state"] is not None:
        if query["state"] not in {state.value for state in State}:
            raise errors.INPUT_INVALID(where="query.state", problem=f"{query['state'][:40]!r} is no state")
        states = (query["state"],)
    agent = None if query["agent"] is None else administration.find_agent(call.control, query["agent"]).id
    return anomalies.Filter(
        states=states, kind=query["kind"], code=query["code"], organization=query["organization"], agent=agent,
        job=query["job"],
    )  # fmt: skip


async def show(call: routing.Call) -> api.AnomalyView:
    """Show one with its newest reports."""
    return service.view(call.control, call.parameters["anomaly"])


async def answer(call: routing.Call) -> api.AnomalyView:
    """Say something to those who reported it."""
    public_id = call.parameters["anomaly"]
    await service.act(call.control, public_id, "answer", text=call.body.text, actor=call.actor)
    return service.view(call.control, public_id)


async def _act(call: routing.Call, verb: str, reason: str) -> api.AnomalyView:
    public_id = call.parameters["anomaly"]
    await service.act(call.control, public_id, verb, text=reason, actor=call.actor)
    return service.view(call.control, public_id)


def routes() -> list[routing.Route]:
    """These routes."""
    words = [routing.Query(name=name, kind=str) for name in ("state", "kind", "code", "organization", "agent", "job")]
    page = (
        *words,
        routing.Query(name="after", kind=str),
        routing.Query(name="limit", kind=int, default=100, minimum=1, maximum=_MAX_PAGE),
        routing.Query(name="since", kind=int, default=0),
        routing.Query(name="wait", kind=float, default=0.0, maximum=_MAX_WAIT),
    )
    verbs = {
        "acknowledge": "Say that somebody looks after it", "close": "It is resolved",
        "reopen": "It is not resolved after all",
    }  # fmt: skip
    acts = routing.acts(
        "anomaly", _act, verbs, path="/v1/anomalies/{anomaly}", request=api.AnomalyAct, answer=api.AnomalyView
    )
    return [
        routing.Route(
            method="GET", path="/v1/anomalies", handler=list_anomalies, summary="List anomalies, or wait for changes",
            auth="viewer", answer=api.AnomalyList, query=page,
        ),
        routing.Route(
            method="GET", path="/v1/anomalies/{anomaly}", handler=show, summary="One anomaly with its newest reports",
            auth="viewer", answer=api.AnomalyView,
        ),
        routing.Route(
            method="POST", path="/v1/anomalies/{anomaly}/answer", handler=answer,
            summary="Answer the tasks that reported it", auth="operator", request=api.AnomalyAnswer,
            answer=api.AnomalyView, act="anomaly.answer",
        ),
        *acts,
    ]  # fmt: skip

"""Every operation against requests made from the published description: those that fit it and those that do not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from agentina import errors
from agentina.control.api import openapi, routes, routing
from agentina.protocol import wire
from tests.fakes import deadlines
from tests.integration.control import simulated

ROUTES = {f"{route.method} {route.path.replace(':path}', '}')}": route for route in routes.table()}
#: Those where something can be wrong: any text fits a path.
REFUSABLE = [name for name, route in ROUTES.items() if route.query or route.request is not None]
#: Those that want more than one request can know: a signature, a fact's number, an ended job, a stored artifact.
SELDOM_DONE = {name for name, route in ROUTES.items() if route.auth == "agent"} | {
    "POST /v1/activate", "POST /v1/jobs/{job}/retry", "GET /v1/jobs/{job}/artifacts/{name}",
    "GET /releases/{path}", "POST /v1/rollouts", "POST /v1/rollouts/{rollout}/resume",
    "POST /v1/anomalies/{anomaly}/reopen", "POST /v1/budgets/{scope}/{name}/raise", "DELETE /v1/budgets/{scope}/{name}",
}  # fmt: skip

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
BOUNDED = hypothesis.settings(
    max_examples=15, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A fleet with one running task, and what is needed to ask about it."""

    url: str
    description: Any
    connections: requests.Session
    operator: simulated.Operator
    agent: simulated.Agent
    #: Values that exist, by the names they have in paths.
    path: dict[str, str]
    #: The same in queries.
    query: dict[str, Any]
    #: The same in bodies.
    body: dict[str, Any]

    def send(self, case: Any, route: routing.Route, *, is_existing: bool) -> Any:
        if is_existing:
            for part, values in (
                (case.path_parameters, self.path), (case.query, self.query), (case.body, self.body)
            ):  # fmt: skip
                if isinstance(part, dict):
                    part.update({name: value for name, value in values.items() if name in part})
        hold_nothing(case, route)
        client = self.agent if route.auth == "agent" else self.operator
        # Its own patience is ten seconds.
        answer = case.call(
            base_url=self.url, session=self.connections, headers={"Authorization": client.authorization},
            timeout=deadlines.HANG,
        )  # fmt: skip
        case.validate_response(answer, checks=CHECKS)
        return answer


def hold_nothing(case: Any, route: routing.Route) -> None:
    """Make long polls answer at once; what is no number stays, as it has to be refused."""
    if isinstance(case.body, dict) and route.request is wire.Poll:
        case.body.setdefault("wait_seconds", 0)
    for part, name in ((case.query, "wait"), (case.body, "wait_seconds")):
        if isinstance(part, dict) and isinstance(part.get(name), int | float):
            part[name] = 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[simulated.Process]:
    with simulated.process(tmp_path_factory.mktemp("schema") / "data") as serving:
        yield serving


@pytest.fixture(scope="module")
def description(server: simulated.Process) -> Any:
    configuration = schemathesis.config.SchemathesisConfig()
    # Who may call is tested elsewhere; here everybody may.
    configuration.projects.default.generation.with_security_parameters = False
    return schemathesis.openapi.from_url(f"{server.url}/schema", config=configuration)


@pytest.fixture
def scene(server: simulated.Process, description: Any) -> Iterator[Scene]:
    operator = simulated.Operator(server.url, server.token)
    agent = simulated.new_agent(server.url, operator)
    # Not the agent that calls: this one may be drained and removed.
    bystander = simulated.new_agent(server.url, operator).activated.agent_id
    operator.call("PUT", "/v1/organizations/described", {})
    # Each scene leaves an agent behind.
    operator.call("PUT", "/v1/organizations/default", {"max_agents": 1000})
    # A rollout for an agent that no other one is for.
    member = simulated.Agent(server.url)
    role = f"r{member.key.public.id[:8].lower()}"
    member.activate(operator.mint(role=role))
    member.open()
    wanted = {"version": "1.0.0", "select": [f"role={role}"]}
    rollout = operator.call("POST", "/v1/rollouts", wanted)["rollout"]["id"]
    operator.submit()
    # It may get a job of an earlier request instead, which is as good.
    (task,) = agent.take(slots=1)
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running", pid=42))
    # One of its own: others may have been closed.
    summary = f"agent {agent.key.public.id} is tired"
    found = wire.Anomaly(id="a", kind="health", code="TIRED", summary=summary, release=agent.key.public.id)
    agent.report(agent.fact(task, "anomaly", anomaly=found))
    listed = operator.call("GET", f"/v1/anomalies?agent={agent.activated.agent_id}")
    anomaly = listed["anomalies"][0]["id"]
    token = operator.call("POST", "/v1/tokens", {})["tokens"][0]["id"]
    with requests.Session() as connections:
        yield Scene(
            url=server.url, description=description, connections=connections, operator=operator, agent=agent,
            path={"job": task.partition(".")[0], "task": task, "agent": bystander, "token": token, "name": "described",
                  "rollout": rollout, "anomaly": anomaly, "scope": "organization"},
            query={"session": agent.session, "offset": 0, "task": task, "organization": "default", "after": 0},
            body={"session": agent.session, "stream": agent.stream, "task_id": task, "protocol": 1,
                  "runner": "command", "payload": {"argv": ["true"]}, "name": "described",
                  "agent": member.activated.agent_id,
                  "jobs": [{"job": {"name": "described", "payload": {"argv": ["true"]}}}]},
        )  # fmt: skip
    for left in (agent.activated.agent_id, bystander):
        with contextlib.suppress(errors.AgentinaError):
            operator.call("DELETE", f"/v1/agents/{left}")


def answers(scene: Scene, name: str, mode: schemathesis.GenerationMode) -> list[int]:
    """Statuses of the answers to all requests of one operation."""
    method, path = name.split(" ")
    statuses: list[int] = []

    @BOUNDED
    @hypothesis.given(case=scene.description[path][method].as_strategy(generation_mode=mode), is_existing=st.booleans())
    def call(case: Any, *, is_existing: bool) -> None:
        answer = scene.send(case, ROUTES[name], is_existing=is_existing)
        statuses.append(answer.status_code)
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert errors.CATALOGUE[error["code"]].status == answer.status_code

    call()
    return statuses


@pytest.mark.parametrize("name", ROUTES)
def test_described_requests_get_described_answers(scene: Scene, name: str) -> None:
    statuses = answers(scene, name, schemathesis.GenerationMode.POSITIVE)
    assert name in SELDOM_DONE or min(statuses) < 300


@pytest.mark.parametrize("name", REFUSABLE)
def test_other_requests_are_refused_by_the_catalogue(scene: Scene, name: str) -> None:
    statuses = answers(scene, name, schemathesis.GenerationMode.NEGATIVE)
    assert max(statuses) >= 400


def test_the_server_outlives_all_of_it(scene: Scene) -> None:
    assert scene.operator.call("GET", "/v1/audit/verify")["intact"]
    scene.agent.run(scene.path["task"])
    assert scene.operator.state(scene.path["job"])[0] == "succeeded"


def test_every_reference_leads_somewhere() -> None:
    described = openapi.document(routes.table())
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(described)))
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references
    assert references <= known

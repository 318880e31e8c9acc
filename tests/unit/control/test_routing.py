from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.control.api import openapi, routes, routing

TABLE = routing.Table(routes.table())


@pytest.mark.parametrize(
    ("method", "path", "template", "parameters"),
    [
        ("GET", "/v1/jobs", "/v1/jobs", {}),
        ("GET", "/v1/jobs/job_x", "/v1/jobs/{job}", {"job": "job_x"}),
        ("GET", "/v1/jobs/job_x/artifacts", "/v1/jobs/{job}/artifacts", {"job": "job_x"}),
        (
            "GET",
            "/v1/jobs/j/artifacts/a/b.txt",
            "/v1/jobs/{job}/artifacts/{name:path}",
            {"job": "j", "name": "a/b.txt"},
        ),
        ("PUT", "/v1/agent/tasks/t.1/output", "/v1/agent/tasks/{task}/output", {"task": "t.1"}),
        ("GET", "/v1/audit/verify", "/v1/audit/verify", {}),
    ],
)
def test_requests_find_their_route(method: str, path: str, template: str, parameters: dict[str, str]) -> None:
    route, found = TABLE.find(method, path)
    assert (route.path, dict(found)) == (template, parameters)


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "TRACE", ""]), st.text(max_size=60))
def test_any_other_request_is_refused_with_a_code(method: str, path: str) -> None:
    with contextlib.suppress(errors.AgentinaError):
        route, _ = TABLE.find(method, "/" + path)
        assert route.method == method


@given(st.text(max_size=40))
def test_numbers_in_queries_are_bounded(text: str) -> None:
    with contextlib.suppress(errors.AgentinaError):
        value = routing.Query(name="wait", kind=float, maximum=60).parse(text)
        assert isinstance(value, float)
        assert 0 <= value <= 60


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e999", "\uff19" * 30, "", "9" * 5000])
def test_hostile_numbers_are_refused(text: str) -> None:
    for kind in (int, float):
        with pytest.raises(errors.AgentinaError):
            routing.Query(name="n", kind=kind, maximum=60).parse(text)


def test_every_route_is_described_and_every_reference_resolves() -> None:
    document = openapi.document(TABLE.routes)
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    assert described == {(route.path.replace(":path}", "}"), route.method) for route in TABLE.routes}
    schemas = document["components"]["schemas"]

    def check(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            assert reference is None or reference.rpartition("/")[2] in schemas, reference
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(document)


def test_what_changes_something_needs_more_than_a_viewer() -> None:
    for route in TABLE.routes:
        if route.method != "GET" and route.path != "/v1/activate":
            assert route.auth in {"agent", "operator", "admin"}, route.path

"""The API's edges: roles, bounds, hostile input, listing, and the description of it all."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentina import errors
from agentina.protocol import wire
from tests.fakes import deadlines
from tests.integration.control import simulated


def add_operator(control: Any, name: str, role: str) -> simulated.Operator:
    made = control.operator.call("POST", "/v1/operators", {"name": name, "role": role})
    return simulated.Operator(control.url, made["token"])


@pytest.mark.parametrize(
    ("header", "code"),
    [("", "AUTH_REQUIRED"), ("Basic eA==", "AUTH_REQUIRED"), ("Bearer", "AUTH_REQUIRED"),
     ("Bearer aop_wrong", "AUTH_INVALID"), ("Bearer " + "x" * 5000, "AUTH_REQUIRED")],
)  # fmt: skip
def test_without_a_valid_token_nothing_is_shown(control: Any, header: str, code: str) -> None:
    client = simulated.Client(control.url, header)
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/audit")):
        with pytest.raises(errors.AgentinaError, match=code):
            client.call(method, path)


def test_errors_carry_code_remedy_and_a_request_id(control: Any, operator: simulated.Operator) -> None:
    answer = operator.raw("GET", "/v1/jobs/job_none")
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"], error["context"]) == (404, "JOB_UNKNOWN", {"job": "job_none"})
    assert error["remedy"]
    assert error["request_id"] == answer.getheader("agentina-request")
    assert abs(int(answer.getheader("agentina-time") or 0) - control.clock.wall_ms()) < 5000
    for method, path, status in (("GET", "/nowhere", 404), ("PATCH", "/v1/jobs", 405), ("GET", "/v1/activate", 405)):
        answer = operator.raw(method, path)
        answer.read()
        assert answer.status == status


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b"{", ("INPUT_UNREADABLE", "job")),
        (b"\xff\xfe", ("INPUT_UNREADABLE", "job")),
        (b"[" * 100_000, ("INPUT_UNREADABLE", "job")),
        (b"[]", ("INPUT_INVALID", "job")),
        (b'{"name": "x", "payload": {"argv": ["a"]}, "timeot": 1}', ("INPUT_UNKNOWN_KEY", "timeot")),
        (b'{"name": "x", "payload": {"argv": ["a"]}, "limits": {"timeot": 1}}', ("INPUT_UNKNOWN_KEY", "'timeout'")),
        (b'{"name": "x", "payload": {"argv": ["a"]}, "priority": 1000}', ("INPUT_INVALID", "priority")),
        (b"x" * (3 << 20), ("INPUT_TOO_LARGE", "body")),
        (b"", ("INPUT_UNREADABLE", "job")),
    ],
)
def test_bad_jobs_are_refused_with_the_place(
    control: Any, operator: simulated.Operator, body: bytes, refusal: tuple[str, str]
) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        operator.call("POST", "/v1/jobs", body)
    assert caught.value.code == refusal[0]
    assert refusal[1] in str(caught.value)


@pytest.mark.parametrize(
    ("jobs", "refusal"),
    [
        ("[]", ("INPUT_INVALID", "length >= 1")),
        ("[{}]", ("INPUT_INVALID", "missing required field `job`")),
        ('[{"job": {"name": "x", "payload": {"argv": ["a"]}}, "key": "k"}]', ("INPUT_UNKNOWN_KEY", "key")),
        ('[{"job": {"name": "x", "payload": {"argv": ["a"]}}}, {"job": []}]', ("INPUT_INVALID", "jobs[1].job")),
        ('[{"job": {"name": "x", "payload": {"argv": ["a"]}, "priority": 999}}]', ("INPUT_INVALID", "jobs[0].job.pri")),
        ('[{"job": {"name": "x", "payload": {"argv": ["a"]}}, "idempotency_key": ""}]', ("INPUT_INVALID", "Idempot")),
        ('[{"job": "' + "x" * (1 << 20) + '"}]', ("INPUT_TOO_LARGE", "jobs[0].job")),
        ("[" + ", ".join(['{"job": 1}'] * 129) + "]", ("INPUT_INVALID", "length <= 128")),
    ],
)  # fmt: skip
def test_bad_jobs_of_a_batch_are_refused_with_the_place(
    control: Any, operator: simulated.Operator, jobs: str, refusal: tuple[str, str]
) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        operator.call("POST", "/v1/job-batches", f'{{"jobs": {jobs}}}'.encode())
    assert (caught.value.code, refusal[1] in str(caught.value)) == (refusal[0], True), str(caught.value)[:300]
    assert operator.call("GET", "/v1/jobs")["jobs"] == []


def test_a_body_that_lies_about_its_length_is_cut_off(control: Any, operator: simulated.Operator) -> None:
    host, port = control.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=deadlines.HANG) as raw:
        raw.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Authorization: " + operator.authorization.encode() + b"\r\n\r\n"
        )
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        try:
            for _ in range(64):
                raw.sendall(chunk)
        except OSError:
            pass
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_jobs_are_listed_in_pages_and_by_state(control: Any, operator: simulated.Operator) -> None:
    jobs = [operator.submit(name=f"n{number}") for number in range(5)]
    operator.call("POST", f"/v1/jobs/{jobs[2]}/cancel")
    seen, after = [], ""
    while True:
        page = operator.call("GET", f"/v1/jobs?limit=2{after}")
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == jobs[::-1]
    assert [job["id"] for job in operator.call("GET", "/v1/jobs?state=canceled")["jobs"]] == [jobs[2]]
    for query in ("state=dancing", "limit=0", "limit=99999999999999999999", "limit=x", "after=job_none"):
        with pytest.raises(errors.AgentinaError):
            operator.call("GET", f"/v1/jobs?{query}")


def test_metrics_have_the_names_of_the_contract(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit(role="nobody")
    job = operator.submit()
    (task,) = agent.take()
    used = wire.Usage(
        memory_peak_bytes=1 << 20, io_read_bytes=4096, io_write_bytes=8192, io_operations=3,
        network_received_bytes=700, network_sent_bytes=70,
    )  # fmt: skip
    agent.run(task, usage=used)
    text = operator.raw("GET", "/metrics").read().decode()
    assert operator.state(job)[0] == "succeeded"
    for line in (
        'agent_tasks_total{priority="normal",role="",status="succeeded"} 1.0',
        'jobs_completed_total{status="succeeded"} 1.0',
        'queue_pending{organization="default",role="nobody"} 1.0',
        "agents_online_ratio 1.0",
        "agents_version_skew 1.0",
        'agent_session_duration_seconds_count{role=""} 1.0',
        "task_start_latency_seconds_count 1.0",
        'task_memory_peak_bytes_count{role=""} 1.0',
        'task_io_bytes_total{direction="read",role=""} 4096.0',
        'task_io_bytes_total{direction="write",role=""} 8192.0',
        'task_io_operations_total{role=""} 3.0',
        'task_network_bytes_total{direction="received",role=""} 700.0',
        'task_network_bytes_total{direction="sent",role=""} 70.0',
    ):
        assert line in text


def test_roles_allow_what_they_say_and_no_more(control: Any, operator: simulated.Operator) -> None:
    viewer, worker = add_operator(control, "eve", "viewer"), add_operator(control, "bob", "operator")
    assert viewer.call("GET", "/v1/whoami")["operator"] == "eve"
    job = worker.submit()
    assert viewer.show(job)["job"]["state"] == "queued"
    for client, method, path, needed in (
        (viewer, "POST", f"/v1/jobs/{job}/cancel", "operator"),
        (viewer, "POST", "/v1/tokens", "operator"),
        (worker, "PUT", "/v1/organizations/default", "admin"),
    ):
        with pytest.raises(errors.AgentinaError, match="FORBIDDEN") as caught:
            client.call(method, path, {})
        assert caught.value.context["needed"] == needed
    worker.call("POST", f"/v1/jobs/{job}/cancel")
    assert operator.call("GET", "/v1/audit?limit=1000")["entries"][-1]["actor"] == "operator:bob"


def test_the_description_is_served(control: Any, operator: simulated.Operator) -> None:
    assert operator.call("GET", "/schema")["openapi"] == "3.1.0"
    assert operator.call("GET", "/v1/job-schema")["$defs"]["JobSpec"]["properties"]["name"]


METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE"])
SEGMENTS = st.sampled_from(
    ["v1", "jobs", "job_0123456789abcdef", "output", "artifacts", "agent", "poll", "session", "tasks", "tokens",
     "agents", "audit", "organizations", "default", "job_0123456789abcdef.1", "x%00y", "%ff", "..", "cancel", "retry",
     "drain", "activate", "heartbeat", "reports", "é".encode().hex(), "a" * 300]
)  # fmt: skip
QUERIES = st.sampled_from(
    ["", "?offset=-1", "?wait=1e400", "?task=a.b&offset=99999999999", "?after=%ff", "?&&&=", "?limit=5",
     "?session=1&offset=0", "?state=%00", "?organization=%22"]
)  # fmt: skip
BODIES = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["session", "tasks", "name", "payload", "reason", "token"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ).map(lambda document: json.dumps(document).encode()),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=METHODS, path=st.lists(SEGMENTS, max_size=6).map("/".join), query=QUERIES,
    sent=st.tuples(BODIES, st.booleans()),
)  # fmt: skip
def test_no_input_is_an_internal_error(
    control: Any, operator: simulated.Operator, *, method: str, path: str, query: str, sent: tuple[bytes, bool]
) -> None:
    body, as_agent = sent
    if not hasattr(control, "fuzzer"):
        control.fuzzer = control.agent()
    client = control.fuzzer if as_agent else operator
    answer = client.raw(method, f"/{path}{query}", body if method != "GET" else None)
    content = answer.read()
    assert answer.status < 500, content
    if answer.status >= 400:
        assert json.loads(content)["error"]["code"] in errors.CATALOGUE

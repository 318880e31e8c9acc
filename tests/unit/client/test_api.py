from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.client import api
from agentina.protocol import api as messages
from tests.fakes import deadlines, scripted_server
from tests.fakes.scripted_server import answer, refusal

CREATED = {"id": "job_0000000000000001", "created": True}
WHO = {"operator": "ann", "role": "admin", "control_plane_id": "cp_1", "version": "1"}

Serve = Callable[..., scripted_server.ScriptedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[scripted_server.ScriptedServer] = []

    def start(*script: scripted_server.Script, tls: ssl.SSLContext | None = None) -> scripted_server.ScriptedServer:
        started.append(scripted_server.ScriptedServer(*script, tls=tls))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def pauses() -> list[float]:
    return []


def client_of(server: scripted_server.ScriptedServer, pauses: list[float], **options: object) -> api.Client:
    return api.Client(server.url, token="aop_secret", pause=pauses.append, timeout_seconds=deadlines.HANG, **options)  # type: ignore[arg-type]


def test_request_carries_token_and_decodes_answer(serve: Serve, pauses: list[float]) -> None:
    server = serve(answer(WHO))
    with client_of(server, pauses) as client:
        assert client.whoami().operator == "ann"
    assert server.asked[0].headers["authorization"] == "Bearer aop_secret"
    assert server.asked[0].path == "/v1/whoami"


def test_connection_is_kept_alive(serve: Serve, pauses: list[float]) -> None:
    server = serve(answer(WHO))
    with client_of(server, pauses) as client:
        for _ in range(5):
            client.whoami()
    assert server.connections == 1


def test_idle_connection_closed_by_server_is_replaced_without_a_pause(serve: Serve, pauses: list[float]) -> None:
    server = serve(answer(WHO), b"", answer(WHO))
    with client_of(server, pauses) as client:
        client.whoami()
        assert client.whoami().operator == "ann"
    assert pauses == []


TOKENS = {"tokens": [{"id": "tok_1", "token": "act_x", "expires_ms": 1}]}


@pytest.mark.parametrize("tls", [False, True])
def test_what_must_not_be_repeated_survives_the_end_of_an_idle_connection(
    serve: Serve, pauses: list[float], certificate: Path, *, tls: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.with_name("both.pem"))
    server = serve(scripted_server.Cut(answer(TOKENS)), answer(TOKENS), tls=context if tls else None)
    with client_of(server, pauses, ca_file=str(certificate)) as client:
        client.create_tokens(messages.TokenCreate())
        server.wait_closed()
        client.create_tokens(messages.TokenCreate())
    assert (len(server.asked), server.connections, pauses) == (2, 2, [])


def test_connection_that_was_idle_for_long_is_not_used_again(
    serve: Serve, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answer(TOKENS))
    with client_of(server, pauses) as client:
        client.create_tokens(messages.TokenCreate())
        monkeypatch.setattr(api, "_IDLE", -1.0)
        client.create_tokens(messages.TokenCreate())
    assert server.connections == 2


@pytest.mark.parametrize(
    "trouble",
    [
        refusal("OVERLOADED", status=429, what="x", retry_after=1),
        refusal("INTERNAL", status=500, incident="1"),
        answer(b"<html>bad gateway</html>", status=502),
        b"",
        scripted_server.Cut(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        scripted_server.Cut(b"garbage\r\n\r\n"),
    ],
)
def test_submission_survives_trouble_with_the_same_key(serve: Serve, pauses: list[float], trouble: bytes) -> None:
    server = serve(trouble, trouble, answer(CREATED))
    with client_of(server, pauses) as client:
        assert client.submit_job({"name": "x"}).id == CREATED["id"]
    keys = {asked.headers["idempotency-key"] for asked in server.asked}
    assert len(server.asked) == 3
    assert len(keys) == 1
    assert len(pauses) == 2


def test_many_jobs_go_in_requests_that_are_small_enough(serve: Serve, pauses: list[float]) -> None:
    def store(asked: scripted_server.Asked) -> bytes:
        assert len(asked.body) <= messages.MAX_BATCH_BYTES
        made = [{"id": item["idempotency_key"]} for item in json.loads(asked.body)["jobs"]]
        return answer({"jobs": made}, status=201)

    server = serve(b"", store)
    large = {"name": "x", "payload": {"script": "x" * (1 << 20)}}
    with client_of(server, pauses) as client:
        documents = [{"name": "small"}] * 200 + [large] * 5
        made = [one.id for one in client.submit_jobs(documents, key="k")]
        assert made == [f"k.{number}" for number in range(205)]
        batches = [len(json.loads(asked.body)["jobs"]) for asked in server.asked[1:]]
        assert batches == [128, 75, 2]
        assert server.asked[0].body == server.asked[1].body
        assert list(client.submit_jobs([])) == []
        assert len({one.id for _ in range(2) for one in client.submit_jobs([{}])}) == 2


def test_retry_after_is_obeyed_and_bounded(serve: Serve, pauses: list[float]) -> None:
    busy = answer({}, status=503, headers={"Retry-After": "7"})
    absurd = answer({}, status=503, headers={"Retry-After": "999999"})
    server = serve(busy, absurd, answer(WHO))
    with client_of(server, pauses) as client:
        client.whoami()
    assert 7 <= pauses[0] <= 8
    assert 30 <= pauses[1] <= 41


def test_it_gives_up_after_its_patience(serve: Serve, pauses: list[float]) -> None:
    server = serve(refusal("SHUTTING_DOWN", status=503))
    with (
        client_of(server, pauses, patience=api.Patience(attempts=3)) as client,
        pytest.raises(errors.AgentinaError) as caught,
    ):
        client.whoami()
    assert caught.value.entry is errors.SHUTTING_DOWN
    assert len(server.asked) == 3


def test_minting_tokens_is_never_repeated_once_it_may_have_arrived(serve: Serve, pauses: list[float]) -> None:
    server = serve(b"")
    with client_of(server, pauses) as client, pytest.raises(errors.AgentinaError):
        client.create_tokens(messages.TokenCreate())
    assert len(server.asked) == 1


def test_refused_connections_are_retried_then_named(pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        api.Client(f"http://127.0.0.1:{port}", pause=pauses.append) as client,
        pytest.raises(errors.AgentinaError) as caught,
    ):
        client.create_tokens(messages.TokenCreate())
    assert caught.value.entry is errors.CONTROL_PLANE_UNREACHABLE
    assert str(port) in caught.value.message
    assert len(pauses) == api.Patience().attempts - 1


def _answer_in_plain_http(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_wrong_scheme_is_named(serve: Serve, pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        client = api.Client(url, patience=api.Patience(attempts=1), pause=pauses.append)
        answering = threading.Thread(target=_answer_in_plain_http, args=(listener,))
        answering.start()
        with pytest.raises(errors.AgentinaError, match="does not speak TLS; perhaps its address begins with http://"):
            client.whoami()
        answering.join()
    # So does a server of TLS end a connection that begins with something else.
    ends = serve(b"").url
    with pytest.raises(errors.AgentinaError, match="perhaps its address begins with https://"):
        api.Client(ends, patience=api.Patience(attempts=1), pause=pauses.append).whoami()


def test_refusals_keep_the_catalogue_entry_and_are_not_repeated(serve: Serve, pauses: list[float]) -> None:
    server = serve(refusal("JOB_UNKNOWN", status=404, job="job_x"))
    with client_of(server, pauses) as client, pytest.raises(errors.AgentinaError) as caught:
        client.get_job("job_x")
    assert caught.value.entry is errors.JOB_UNKNOWN
    assert "job_x" in caught.value.message
    assert len(server.asked) == 1


def test_notice_is_given_once_per_request(serve: Serve, pauses: list[float]) -> None:
    told: list[errors.AgentinaError] = []
    server = serve(refusal("SHUTTING_DOWN", status=503), refusal("SHUTTING_DOWN", status=503), answer(WHO))
    with client_of(server, pauses, notice=told.append) as client:
        client.whoami()
    assert [error.code for error in told] == ["SHUTTING_DOWN"]


def test_interrupt_while_an_answer_is_put_away_is_not_lost(
    serve: Serve, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(http.client.HTTPResponse):
        def close(self) -> None:
            first = not self.closed
            super().close()
            if first:
                raise KeyboardInterrupt

    monkeypatch.setattr(http.client.HTTPConnection, "response_class", Interrupted)
    server = serve(answer(WHO))
    # A finalizer that closes it would have the exception vanish.
    with client_of(server, pauses) as client, pytest.raises(KeyboardInterrupt):
        client.whoami()


def test_answers_are_bounded(serve: Serve, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_PIECE", 1000)
    server = serve(answer(b"x" * 1001))
    with client_of(server, pauses) as client, pytest.raises(errors.AgentinaError) as caught:
        client.get_output("job_x", task=None, offset=0, wait=0)
    assert caught.value.entry is errors.ANSWER_UNREADABLE


def test_answer_of_another_shape_is_named(serve: Serve, pauses: list[float]) -> None:
    server = serve(answer({"operator": 5}))
    with client_of(server, pauses) as client, pytest.raises(errors.AgentinaError) as caught:
        client.whoami()
    assert caught.value.entry is errors.ANSWER_UNREADABLE


def test_output_tells_where_to_go_on(serve: Serve, pauses: list[float]) -> None:
    headers = {"Agentina-Offset": "17", "Agentina-Final": "true", "Agentina-Task": "job_x.1"}
    server = serve(answer(b"\xff\x00hello", headers=headers))
    with client_of(server, pauses) as client:
        piece = client.get_output("job_x", task="job_x.1", offset=10, wait=2.5)
    assert piece == api.OutputPiece(data=b"\xff\x00hello", offset=17, final=True, task_id="job_x.1")
    assert server.asked[0].path == "/v1/jobs/job_x/output?task=job_x.1&offset=10&wait=2.5"


def test_hostile_ids_stay_inside_their_path_segment(serve: Serve, pauses: list[float]) -> None:
    server = serve(refusal("JOB_UNKNOWN", status=404, job="?"))
    with client_of(server, pauses) as client, pytest.raises(errors.AgentinaError):
        client.get_job("../tokens?x=1")
    assert server.asked[0].path == "/v1/jobs/..%2Ftokens%3Fx%3D1"


def test_empty_id_is_asked_for_nowhere(serve: Serve, pauses: list[float]) -> None:
    server = serve(answer(None, status=204))
    with client_of(server, pauses) as client:
        with pytest.raises(errors.AgentinaError, match="the id or name: it is empty"):
            client.get_job("")
        with pytest.raises(errors.AgentinaError, match="the id or name: it is empty"):
            client.revoke_token("")
    assert not server.asked


def test_cut_off_artifact_is_an_error(serve: Serve, pauses: list[float], tmp_path: Path) -> None:
    server = serve(scripted_server.Cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234"))
    got: list[bytes] = []
    with client_of(server, pauses) as client, pytest.raises(errors.AgentinaError) as caught:
        client.read_artifact("job_x", "a", got.append)
    assert caught.value.entry is errors.ANSWER_UNREADABLE
    # the server closes only after the script's bytes; what came before the cut was passed on
    assert b"".join(got) == b"1234"


def test_missing_and_wrong_ca_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(errors.AgentinaError) as caught:
        api.tls_context(str(file))
    assert caught.value.entry is errors.FILE_UNREADABLE
    file.write_text("no certificate")
    with pytest.raises(errors.AgentinaError) as caught:
        api.tls_context(str(file))
    assert caught.value.entry is errors.INPUT_UNREADABLE
    assert str(file) in caught.value.message


def test_token_is_not_in_repr() -> None:
    assert "aop_secret" not in repr(api.Client("https://x.example", token="aop_secret"))


def test_proxy_is_asked_for_the_control_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse() -> None:
            connection, _ = proxy.accept()
            with connection:
                seen.append(connection.recv(4096).split(b"\r\n")[0].rpartition(b" ")[0])
                connection.sendall(b"HTTP/1.1 407 Authenticate\r\n\r\n")

        server = threading.Thread(target=refuse)
        server.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        client = api.Client("https://control.invalid:8443", patience=api.Patience(attempts=1))
        with pytest.raises(errors.AgentinaError, match="407") as caught:
            client.whoami()
        server.join()
    assert caught.value.entry is errors.CONTROL_PLANE_UNREACHABLE
    assert seen == [b"CONNECT control.invalid:8443"]

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.gateway import requests, rules


def understand(raw: bytes) -> requests.Request:
    """As the listener does it: the raw check, h11's grammar, then the meaning."""
    requests.check_raw(raw)
    connection = h11.Connection(our_role=h11.SERVER)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise errors.GATEWAY_REQUEST_INVALID(problem=str(error)) from error
    if not isinstance(event, h11.Request):
        raise errors.GATEWAY_REQUEST_INVALID(problem="not a request")
    return requests.read(event)


def test_forms() -> None:
    tunnel = understand(b"CONNECT Example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert (tunnel.form, tunnel.target) == (requests.Form.TUNNEL, rules.Target("example.com", 443))
    forward = understand(b"GET http://example.com/a?b=c HTTP/1.1\r\nHost: example.com:80\r\n\r\n")
    assert (forward.form, forward.target, forward.path) == (
        requests.Form.FORWARD, rules.Target("example.com", 80), "/a?b=c",
    )  # fmt: skip
    assert understand(b"GET http://example.com?q HTTP/1.1\r\nHost: example.com\r\n\r\n").path == "/?q"
    own = understand(b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
    assert (own.form, own.target) == (requests.Form.OWN, None)
    socket = understand(
        b"GET http://e.com/ HTTP/1.1\r\nHost: e.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
    )
    assert socket.upgrade == "websocket"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET http://a.com/ HTTP/1.1\r\nHost: b.com\r\n\r\n",
        b"GET http://a.com/ HTTP/1.1\r\nHost: a.com:8080\r\n\r\n",
        b"GET http://a.com:8080/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"CONNECT a.com:443 HTTP/1.1\r\nHost: b.com:443\r\n\r\n",
        b"CONNECT a.com HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com\r\nContent-Length: 5\r\n\r\n",
        b"GET http://a.com/ HTTP/1.1\r\nHost: a.com\r\nHost: b.com\r\n\r\n",
        b"GET http://a.com/ HTTP/1.1\r\n\r\n",
        b"GET https://a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"GET ftp://a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"GET http://u:p@a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"GET http://a.com/#x HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a.com\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n",
        b"POST / HTTP/1.1\nHost: a\n\n",
        b"POST / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_what_two_readers_could_see_differently_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        understand(raw)
    assert caught.value.code == "GATEWAY_REQUEST_INVALID"


def test_fields_of_the_connection_are_not_passed_on() -> None:
    request = understand(
        b"GET http://a.com/ HTTP/1.1\r\nHost: a.com\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\n"
        b"Proxy-Authorization: Bearer agt_x\r\nProxy-Connection: keep-alive\r\nAccept: */*\r\nCookie: a=b\r\n\r\n"
    )
    assert request.passed_on() == [(b"accept", b"*/*"), (b"cookie", b"a=b")]
    assert request.passed_on(without=frozenset({b"cookie"})) == [(b"accept", b"*/*")]


pieces = st.sampled_from(
    [b"GET ", b"CONNECT ", b"http://a.com/", b"a.com:443", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: a.com",
     b"Host: b.com", b"Content-Length: 3", b"Transfer-Encoding: chunked", b" ", b"\t", b"\0", b":", b"X", b"\xff"]
)  # fmt: skip


@given(st.lists(pieces | st.binary(max_size=6), max_size=16).map(b"".join))
def test_any_head_is_understood_or_refused(head: bytes) -> None:
    try:
        request = understand(head + b"\r\n\r\n")
    except errors.AgentinaError:
        return
    lengths = [name for name, _ in request.headers if name in {b"content-length", b"transfer-encoding"}]
    assert len(lengths) <= 1
    if request.target is not None:
        host = request.header(b"host")
        assert host is not None
        assert rules.parse_target(host.decode(), default_port=request.target.port) == request.target

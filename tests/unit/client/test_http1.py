from __future__ import annotations

import contextlib

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.client import http1

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, *, step: int = 1 << 20, ends: bool = True, limit: int = 1000) -> http1.Answer | None:
    """The answer in ``data``, which comes ``step`` bytes at a time."""
    reader = http1.Reader(limit=limit)
    for begin in range(0, len(data), step):
        answer = reader.feed(data[begin : begin + step])
        if answer is not None:
            # What comes in the same piece shows that more was sent than belongs to it.
            return answer
    return reader.feed(b"") if ends else None


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", (200, b"hello", False)),
        (OK + b"content-length:5 \r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", False)),
        (OK + b"Content-Length: 5, 5\r\nConnection: x, Close\r\n\r\nhello", (200, b"hello", True)),
        (b"HTTP/1.0 200\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", True)),
        (b"HTTP/1.1 204 \r\n\r\n", (204, b"", False)),
        (b"HTTP/1.1 304 x\r\nContent-Length: 77\r\n\r\n", (304, b"", False)),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n", (200, b"", False)),
        (OK + b"\r\nuntil the end", (200, b"until the end", True)),
        (
            CHUNKED + b"5\r\nhello\r\n00a ; x=y\r\n0123456789\r\n0\r\nX: trailer\r\n\r\n",
            (200, b"hello0123456789", False),
        ),
    ],
)
def test_framing(data: bytes, expected: tuple[int, bytes, bool], step: int) -> None:
    answer = read(data, step=step)
    assert answer is not None
    assert (answer.status, answer.body, answer.is_last) == expected


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\r\n\r\n",
        OK + b"Content-Length: 0\rX: y\r\n\r\n",
        OK + b"A: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
        OK + b"A : b\r\nContent-Length: 0\r\n\r\n",
        OK + b"nothing\r\nContent-Length: 0\r\n\r\n",
        OK + b"A: \x00\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: +1\r\n\r\na",
        OK + b"Content-Length: 1,\r\n\r\na",
        OK + b"Content-Length: 5\r\n\r\nhell",
        OK + b"Content-Length: 1001\r\n\r\n",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"\r\n" + b"x" * 1001,
        CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
        CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"3e9\r\n",
        CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        CHUNKED + b"0" * 70_000,
        OK + b"x" * 70_000,
    ],
)
def test_anything_else_is_refused(data: bytes, step: int) -> None:
    with pytest.raises(http1.UnreadableError):
        read(data, step=step)


def test_more_than_the_answer_ends_the_connection() -> None:
    answer = read(OK + b"Content-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n")
    assert answer is not None
    assert (answer.body, answer.is_last) == (b"hi", True)


def test_length_beyond_the_limit_is_refused_before_the_body_comes() -> None:
    with pytest.raises(http1.UnreadableError, match="more than 1000 bytes"):
        read(OK + b"Content-Length: 1001\r\n\r\n", ends=False)


@pytest.mark.parametrize(("target", "value"), [("/a b", "x"), ("/a\r\nX:", "x"), ("/é", "x"), ("/a", "x\r\nY: z")])
def test_what_would_end_a_line_early_is_not_sent(target: str, value: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        http1.request("GET", target, [("X", value)], b"")


@given(body=st.binary(max_size=100), target=st.from_regex(r"/[!-~]{0,30}", fullmatch=True))
def test_another_library_reads_what_is_sent(body: bytes, target: str) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(http1.request("PUT", target, [("Host", "h:1"), ("Accept", "application/json")], body))
    asked = server.next_event()
    assert isinstance(asked, h11.Request)
    assert (asked.method, asked.target) == (b"PUT", target.encode())
    received = b""
    while isinstance(event := server.next_event(), h11.Data):
        received += event.data
    assert (received, type(event)) == (body, h11.EndOfMessage)


names = st.from_regex(r"X-[a-z]{1,8}", fullmatch=True)
values = st.from_regex(r"([!-~]([ -~]{0,10}[!-~])?)?", fullmatch=True)


@given(
    status=st.sampled_from([200, 201, 204, 304, 404, 503]), headers=st.lists(st.tuples(names, values), max_size=4),
    pieces=st.lists(st.binary(min_size=1, max_size=50), max_size=4), is_sized=st.booleans(),
    step=st.integers(min_value=1, max_value=60),
)  # fmt: skip
def test_it_reads_what_another_library_sends(
    status: int, headers: list[tuple[str, str]], pieces: list[bytes], *, is_sized: bool, step: int
) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    server.next_event()
    server.next_event()
    pieces = [] if status in {204, 304} else pieces
    framing = [("Content-Length", str(sum(map(len, pieces))))] if is_sized else []
    data = server.send(h11.Response(status_code=status, headers=headers + framing, reason=b"x")) or b""
    for event in (*(h11.Data(data=piece) for piece in pieces), h11.EndOfMessage()):
        data += server.send(event) or b""
    answer = read(data, step=step, ends=False)
    assert answer is not None
    assert (answer.status, answer.body, answer.is_last) == (status, b"".join(pieces), False)
    assert answer.headers[: len(headers)] == [(name.lower().encode(), value.encode()) for name, value in headers]


@given(
    st.binary(max_size=80) | st.lists(
        st.sampled_from([OK, CHUNKED, b"\r\n", b"\r\n\r\n", b"Content-Length: 3\r\n", b"a: b\r\n", b"3\r\nabc\r\n",
                         b"0", b"abc", b"\n", b"\x00", b"HTTP/1.0 500 no\r\n", b"Connection: close\r\n"]), max_size=8,
    ).map(b"".join),
    st.integers(min_value=1, max_value=100),
)  # fmt: skip
def test_whatever_comes_is_an_answer_or_refused(data: bytes, step: int) -> None:
    results = []
    for size in (step, 1 << 20):
        answer = None
        with contextlib.suppress(http1.UnreadableError):
            answer = read(data, step=size)
        results.append(answer and (answer.status, answer.headers, answer.body))
    assert results[0] == results[1]

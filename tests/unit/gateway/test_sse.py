from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentina.gateway import sse


def read(pieces: list[bytes], *, limit: int = sse.MAX_EVENT) -> tuple[list[bytes], int]:
    reader = sse.Reader((b"MARK",), limit=limit)
    found = [data for piece in pieces for data in reader.feed(piece)]
    found += reader.close()
    return found, reader.oversized


def test_marked_events_are_given() -> None:
    stream = b'event: a\ndata: {"x": 1}\n\ndata: MARK 1\n\n: ping\n\ndata:MARK\ndata: 2\n\ndata: last MARK'
    assert read([stream])[0] == [b"MARK 1", b"MARK\n2", b"last MARK"]


events = st.lists(st.sampled_from([b"data: MARK %d" % n for n in range(5)] + [b"data: no", b": MARK", b"event: x"]))


@given(events, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_cuts_change_nothing(lines: list[bytes], end: bytes, data: st.DataObject) -> None:
    stream = b"".join(line + end + end for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(pieces) == read([stream])
    assert [found for found in read([stream])[0] if found] == [line[6:] for line in lines if line[:10] == b"data: MARK"]


@given(st.lists(st.binary(max_size=30)))
def test_anything_can_pass(pieces: list[bytes]) -> None:
    read(pieces, limit=40)


def test_an_event_too_long_is_passed_over_and_the_next_one_read() -> None:
    found, oversized = read([b"data: MARK " + b"x" * 50, b"x" * 50, b"\n\ndata: MARK\n\n"], limit=60)
    assert (found, oversized) == ([b"MARK"], 1)


def test_memory_is_bounded() -> None:
    reader = sse.Reader((b"MARK",), limit=1000)
    for _ in range(1000):
        assert list(reader.feed(b"x" * 500)) == []
        assert len(reader._rest) <= 1500

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.executors import fields

TEXTS = st.text(st.characters(codec="utf-8"))


@given(st.lists(st.tuples(TEXTS, TEXTS)))
def test_what_is_written_is_read(pairs: list[tuple[str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for name, value in pairs:
        expected.setdefault(name, []).append(value)
    assert fields.decode(fields.encode(pairs)) == expected


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1), st.data())
def test_every_beginning_is_refused_or_a_shorter_list(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    content = fields.encode(pairs)
    cut = data.draw(st.integers(0, len(content) - 1))
    try:
        found = fields.decode(content[:cut])
    except ValueError:
        return
    count = sum(len(values) for values in found.values())
    assert content[:cut] == fields.encode(pairs[:count])


@given(st.binary())
def test_anything_else_is_refused_in_one_way(content: bytes) -> None:
    try:
        fields.decode(content)
    except ValueError:
        return


@pytest.mark.parametrize("content", [b"1:a", b"1:a,", b":a,", b"-1:a,", b"9999999999:a,", b" 1:a,1:b,"])
def test_damage_is_found(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        fields.decode(content)


def test_bytes_that_are_no_text_survive() -> None:
    text = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert fields.decode(fields.encode([("argv", text)])) == {"argv": [text]}

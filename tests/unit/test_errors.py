from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors


@pytest.mark.parametrize("entry", errors.CATALOGUE.values(), ids=lambda entry: entry.code)
def test_every_entry_is_complete(entry: errors.Entry) -> None:
    assert entry.code == entry.code.upper()
    assert 400 <= entry.status < 600
    assert entry.message
    assert entry.cause.endswith(".")
    assert entry.remedy
    assert entry.exit is not errors.Exit.OK


@pytest.mark.parametrize("entry", errors.CATALOGUE.values(), ids=lambda entry: entry.code)
def test_every_entry_travels_and_comes_back_the_same(entry: errors.Entry) -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(entry.message + entry.remedy) if name}
    sent = entry(**{field.split("!")[0]: f"value of {field}" for field in fields})
    received = errors.from_wire(errors.to_wire(sent), status=entry.status)
    assert (received.entry, received.message, received.remedy) == (entry, sent.message, sent.remedy)


def test_placeholder_nobody_filled_is_shown_not_raised() -> None:
    assert "<host>" in errors.TOKEN_USED(used_at="today").message


def test_words_of_others_do_not_double_the_full_stop() -> None:
    said = "Please make sure the repository exists."
    assert errors.FILE_UNREADABLE(where="a", problem=said).message == f"a cannot be read: {said}"
    assert errors.FILE_UNREADABLE(where="a", problem="and so on ..").message == "a cannot be read: and so on ..."


def test_unknown_code_keeps_the_words_of_the_peer() -> None:
    body = {"error": {"code": "FROM_THE_FUTURE", "message": "Too warm.", "remedy": "Cool it."}}
    error = errors.from_wire(body, status=418)
    assert (error.code, error.message, error.remedy) == ("FROM_THE_FUTURE", "Too warm.", "Cool it.")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(json_values | st.fixed_dictionaries({"error": json_values}), st.integers(400, 599))
def test_any_body_becomes_an_error_with_a_code(body: object, status: int) -> None:
    error = errors.from_wire(body, status=status)
    assert error.code
    assert str(error)

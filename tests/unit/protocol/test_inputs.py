from __future__ import annotations

import pytest

from agentina import errors
from agentina.protocol import api, inputs


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "INPUT_UNREADABLE"),
        (b"\xff\xfe", "INPUT_UNREADABLE"),
        (b'{"labels":' * 10_000, "INPUT_INVALID"),
        (b'{"count": 0}', "INPUT_INVALID"),
        (b'{"countt": 1}', "INPUT_UNKNOWN_KEY"),
        (b" " * 300_000, "INPUT_TOO_LARGE"),
    ],
)
def test_bad_bodies_get_a_code(body: bytes, code: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        inputs.decode(body, api.TokenCreate, "body", limit=200_000)
    assert caught.value.code == code


def test_good_body() -> None:
    assert inputs.decode(b'{"count": 3}', api.TokenCreate, "body", limit=100).count == 3


def test_half_a_surrogate_pair_is_the_senders_fault() -> None:
    with pytest.raises(errors.AgentinaError, match="surrogate"):
        inputs.convert({"\ud800": 1}, api.TokenCreate, "body")

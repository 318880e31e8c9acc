from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.gateway import tokens


def test_a_token_fits_its_own_digest_only() -> None:
    one, other = tokens.make(), tokens.make()
    assert tokens.fits(one, tokens.digest(one))
    assert not tokens.fits(other, tokens.digest(one))
    assert not tokens.fits(None, tokens.digest(one))
    assert not tokens.fits("", tokens.digest(""))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Bearer agt_x", "agt_x"),
        (b"bearer  agt_x ", "agt_x"),
        (b"Basic " + base64.b64encode(b"task:agt_x"), "agt_x"),
        (b"Basic " + base64.b64encode(b"agt_x:"), "agt_x"),
        (b"Basic " + base64.b64encode(b"agt_x"), "agt_x"),
        (b"Basic !!", None),
        (b"Digest x", None),
        (b"Bearer " + b"x" * 600, None),
        (None, None),
    ],
)
def test_forms_of_credentials(header: bytes | None, expected: str | None) -> None:
    assert tokens.offered_by(header) == expected


@given(st.binary(max_size=600))
def test_any_header_is_read(header: bytes) -> None:
    tokens.offered_by(header)

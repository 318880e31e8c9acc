from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.protocol import signing

KEY = signing.SigningKey(b"k" * 32)
OTHER = signing.SigningKey(b"o" * 32)
TRUSTED = {KEY.public.id: KEY.public}


def code_of(call: object, *args: object, **kwargs: object) -> str:
    assert callable(call)
    with pytest.raises(errors.AgentinaError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_what_was_signed_verifies() -> None:
    assert signing.verify(KEY.sign("license", b'{"a":1}'), "license", TRUSTED, "license") == b'{"a":1}'


def test_signature_for_one_purpose_is_worthless_for_another() -> None:
    assert code_of(signing.verify, KEY.sign("license", b"x"), "assignment", TRUSTED, "x") == "SIGNATURE_INVALID"


def test_untrusted_key_is_refused() -> None:
    assert code_of(signing.verify, OTHER.sign("license", b"x"), "license", TRUSTED, "x") == "SIGNATURE_INVALID"


def test_key_id_of_a_trusted_key_does_not_help_a_forger() -> None:
    forged = msgspec.structs.replace(OTHER.sign("license", b"x"), key_id=KEY.public.id)
    assert code_of(signing.verify, forged, "license", TRUSTED, "x") == "SIGNATURE_INVALID"


@given(st.text(max_size=50), st.text(max_size=100))
def test_altered_content_never_verifies(payload: str, signature: str) -> None:
    genuine = KEY.sign("license", b"genuine")
    altered = signing.Signed(key_id=genuine.key_id, payload=payload + "!", signature=genuine.signature)
    assert code_of(signing.verify, altered, "license", TRUSTED, "x") == "SIGNATURE_INVALID"
    garbled = signing.Signed(key_id=genuine.key_id, payload=genuine.payload, signature=signature)
    assert code_of(signing.verify, garbled, "license", TRUSTED, "x") == "SIGNATURE_INVALID"


def check(header: str, *, now_ms: int = 1000, audience: str = "cp", key: signing.PublicKey = KEY.public) -> None:
    signed, assertion = signing.read_assertion(header)
    signing.check_assertion(signed, assertion, key=key, audience=audience, now_ms=now_ms)


def test_assertion_holds_for_its_time_and_audience_only() -> None:
    header = signing.make_assertion(KEY, agent_id="a", audience="cp", now_ms=1000)
    check(header)
    late = 1000 + signing.ASSERTION_LIFETIME_MS + signing.CLOCK_TOLERANCE_MS + 1
    assert code_of(check, header, now_ms=late) == "ASSERTION_EXPIRED"
    assert code_of(check, header, now_ms=1000 - signing.CLOCK_TOLERANCE_MS - 1) == "ASSERTION_EXPIRED"
    assert code_of(check, header, audience="other") == "ASSERTION_INVALID"
    assert code_of(check, header, key=OTHER.public) == "ASSERTION_INVALID"


def test_assertion_that_grants_itself_a_year_is_refused() -> None:
    content = signing.Assertion(agent_id="a", audience="cp", issued_ms=0, expires_ms=31_536_000_000)
    signed = KEY.sign_struct("assertion", content)
    assert (
        code_of(signing.check_assertion, signed, content, key=KEY.public, audience="cp", now_ms=1)
        == "ASSERTION_INVALID"
    )


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda raw: "Agentina " + raw.hex()))
def test_any_header_is_refused_cleanly(header: str) -> None:
    assert code_of(signing.read_assertion, header) == "ASSERTION_INVALID"


def test_repr_shows_no_secret() -> None:
    assert "kkkk" not in repr(KEY)
    assert KEY.public.id in repr(KEY)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "A" * 44 + "=="])
def test_bad_public_keys_are_refused(text: str) -> None:
    assert code_of(signing.parse_public_key, text) == "INPUT_INVALID"

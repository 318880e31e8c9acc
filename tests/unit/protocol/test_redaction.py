from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.protocol import redaction


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key sk-ant-api03-AbCdEf0123456789_xyz was refused", "AbCdEf0123456789"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "0123456789"),
        ("github_pat_11ABCDEFG0123456789_abcdefghijkl", "0123456789"),
        ("xoxb-1234567890-abcdefghij", "abcdefghij"),
        ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
        ("token act_0123456789abcdefghjkmnpqrstvwxyz", "0123456789"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIi"),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def"),
        ("curl -H 'x-api-key: 0123456789'", "0123456789"),
        ('{"password": "hunter22"}', "hunter22"),
        ("PGPASSWORD=hunter22 psql", "hunter22"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI", "wJalrXUtnFEMI"),
        ("git clone https://me:hunter22@example.com/x.git", "hunter22"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----", "b3BlbnNz"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADAN", "MIIEvQ"),
    ],
)
def test_credentials_are_taken_out(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redaction.redact(text)
    assert redaction.MASK in redaction.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "This task may not reach example.com:443: the policy does not name it.",
        "pytest failed: 3 tests, see tests/test_token.py:12",
        "commit 0123456789abcdef0123456789abcdef01234567",
        "job_0123456789abcdef.1 is stuck",
        "https://example.com:8080/a@b",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redaction.redact(text) == text


@given(
    st.lists(
        st.text(max_size=20)
        | st.sampled_from(["token=", "Bearer ", "sk-", "://a:", "@", "secret: ", "-----BEGIN PRIVATE KEY-----", "eyJ"]),
        max_size=12,
    ).map("".join)
)
def test_doing_it_again_changes_nothing(text: str) -> None:
    once = redaction.redact(text)
    assert redaction.redact(once) == once

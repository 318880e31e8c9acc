"""One set of rules for the addresses of control planes and the proxies on the way."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.client import address

EXAMPLE = address.parse("https://cp.example")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://agents.example.com/", "https://agents.example.com"),
        ("https://Agents.Example.com:443", "https://agents.example.com"),
        ("https://agents.example.com:8443/base/", "https://agents.example.com:8443/base"),
        ("http://127.0.0.1:8440", "http://127.0.0.1:8440"),
        ("http://[::1]:80", "http://[::1]"),
        ("https://[2001:db8::1]:8440/a", "https://[2001:db8::1]:8440/a"),
        (" http://localhost\n", "http://localhost"),
        ("https://ex\u00e4mple.com/%C3%A4", "https://xn--exmple-cua.com/%C3%A4"),
    ],
)
def test_one_form_for_each_address(url: str, shown: str) -> None:
    parsed = address.parse(url)
    assert str(parsed) == shown
    assert address.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://agents.example.com", "URL_INSECURE"),
        ("http://127.0.0.1.example.com", "URL_INSECURE"),
        ("http://192.168.1.5:8080", "URL_INSECURE"),
        ("ftp://x", "INPUT_INVALID"),
        ("agents.example.com", "INPUT_INVALID"),
        ("https://", "INPUT_INVALID"),
        ("https://a..b", "INPUT_INVALID"),
        (f"https://{'a' * 64}.example", "INPUT_INVALID"),
        ("https://x/\u00e4", "INPUT_INVALID"),
        ("https://x/a b", "INPUT_INVALID"),
        ("https://user:pw@x", "INPUT_INVALID"),
        ("http://user:pw@x", "INPUT_INVALID"),
        ("ftp://user:pw@x", "INPUT_INVALID"),
        ("https://user:pw@[::1", "INPUT_INVALID"),
        ("https://user:pw@x:99999", "INPUT_INVALID"),
        ("https://x:99999", "INPUT_INVALID"),
        ("https://x/?q=1", "INPUT_INVALID"),
        ("https://x/#part", "INPUT_INVALID"),
        ("https://[::1", "INPUT_INVALID"),
        ("", "INPUT_INVALID"),
    ],
)
def test_what_is_refused_never_shows_a_password(url: str, code: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        address.parse(url)
    assert caught.value.code == code
    assert "pw" not in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with contextlib.suppress(errors.AgentinaError):
        parsed = address.parse("https://" + text)
        assert parsed.tls
        assert parsed.host
        assert address.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3129"}, ("proxy", 3129)),
        ({"https_proxy": "proxy"}, ("proxy", 3128)),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "other, .example"}, None),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "ample"}, ("proxy", 3128)),
    ],
)
def test_proxy_is_chosen_from_the_environment(environment: dict[str, str], expected: tuple[str, int] | None) -> None:
    assert address.proxy_for(EXAMPLE, environment) == expected


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://localhost"])
def test_this_machine_is_reached_without_a_proxy(url: str) -> None:
    assert address.proxy_for(address.parse(url), {"HTTPS_PROXY": "http://proxy"}) is None


@pytest.mark.parametrize("proxy", ["socks5://x:1", "http://[::1", "http://x:99999"])
def test_proxy_that_is_no_address_is_refused(proxy: str) -> None:
    with pytest.raises(errors.AgentinaError, match="HTTPS_PROXY"):
        address.proxy_for(EXAMPLE, {"HTTPS_PROXY": proxy})

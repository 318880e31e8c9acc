from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.gateway import rules


@pytest.mark.parametrize(
    ("pattern", "host", "port", "expected"),
    [
        ("example.com", "example.com", 443, True),
        ("EXAMPLE.com.", "example.com", 80, True),
        ("example.com", "example.com", 8443, False),
        ("example.com:8443", "example.com", 8443, True),
        ("example.com:8443", "example.com", 443, False),
        ("example.com", "sub.example.com", 443, False),
        ("*.example.com", "sub.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "evilexample.com", 443, False),
        ("example.com", "example.com.evil.net", 443, False),
        ("*", "anything.net", 443, True),
        ("*", "anything.net", 22, False),
        ("*:22", "anything.net", 22, True),
        ("*.0.0.1", "127.0.0.1", 443, False),
        ("[2606:4700::1]", "2606:4700::1", 443, True),
        ("[2606:4700::1]:22", "2606:4700::1", 22, True),
        ("", "example.com", 443, False),
        ("exa mple.com", "example.com", 443, False),
        ("ex*ple.com", "example.com", 443, False),
    ],
)
def test_pattern(pattern: str, host: str, port: int, *, expected: bool) -> None:
    assert rules.matches(rules.Target(host, port), pattern) is expected


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:0", "host:65536", "host:-1", "a b:1", "host:80:80", "[::1:80", "user@host:80", "127.1:80",
     "0x7f000001:80", "2130706433:80", "0177.0.0.1:80", "1.2.3.4.5:80", "host..name:80", "-x.com:80", "h\u00f6st:80",
     "x" * 254 + ":80", "[127.0.0.1]:80", "[fe80::1%eth0]:80", "1.2.3.4.:80"],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        rules.parse_target(text)
    assert caught.value.code == "GATEWAY_REQUEST_INVALID"


@given(st.text(alphabet=st.characters(min_codepoint=1, max_codepoint=255), max_size=80))
def test_any_text_is_a_canonical_target_or_refused(text: str) -> None:
    try:
        target = rules.parse_target(text, default_port=80)
    except errors.AgentinaError:
        return
    assert rules.parse_target(target.authority) == target
    assert target.host == target.host.lower()


@given(st.text(max_size=40), st.sampled_from(["example.com", "127.0.0.1", "::1"]), st.integers(1, 65535))
def test_any_pattern_is_judged(pattern: str, host: str, port: int) -> None:
    if rules.matches(rules.Target(host, port), pattern):
        rules.check_pattern(pattern)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "169.254.1.1", "0.0.0.0",
     "100.64.0.1", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "192.0.0.192", "198.18.0.1",
     "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1",
     "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::1", "not an address", "fec0::1"],
)  # fmt: skip
def test_addresses_nobody_may_reach(address: str) -> None:
    assert rules.Rules(scope=["*"]).why_forbidden(address) is not None


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_internet_are_open(address: str) -> None:
    assert rules.Rules(scope=["*"]).why_forbidden(address) is None


def test_an_owner_opens_a_private_network_but_never_metadata() -> None:
    opened = rules.Rules(scope=["*"], networks=(ipaddress.ip_network("0.0.0.0/0"),))
    assert opened.why_forbidden("10.1.2.3") is None
    assert opened.why_forbidden("::ffff:10.1.2.3") is None
    assert opened.why_forbidden("169.254.169.254") == "a metadata service"
    assert opened.why_forbidden("::ffff:169.254.169.254") == "a metadata service"


@given(st.integers(0, (1 << 32) - 1))
def test_an_ipv4_address_is_judged_alike_in_every_form(number: int) -> None:
    ours = rules.Rules(scope=["*"])
    plain = ipaddress.IPv4Address(number)
    for form in (f"::ffff:{plain}", str(ipaddress.IPv6Address((0x64FF9B << 96) | number))):
        assert (ours.why_forbidden(form) is None) == (ours.why_forbidden(str(plain)) is None)


def test_a_host_must_be_in_scope_and_policy() -> None:
    both = rules.Rules(scope=["*.example.com", "other.net"], policy=["git.example.com"])
    both.check_target(rules.Target("git.example.com", 443))
    for host, reason in (("other.net", "policy"), ("www.example.com", "policy"), ("third.org", "scope")):
        with pytest.raises(errors.AgentinaError) as caught:
            both.check_target(rules.Target(host, 443))
        assert caught.value.code == "EGRESS_REFUSED"
        assert caught.value.context["reason"] == reason
    with pytest.raises(errors.AgentinaError):
        rules.Rules(scope=["*"], policy=[]).check_target(rules.Target("example.com", 443))
    with pytest.raises(errors.AgentinaError):
        rules.Rules().check_target(rules.Target("example.com", 443))


def test_only_judged_addresses_are_chosen() -> None:
    ours = rules.Rules(scope=["*"])
    target = rules.Target("rebinding.example.com", 443)
    assert ours.choose_addresses(target, ["127.0.0.1", "1.1.1.1", "::1"]) == ["1.1.1.1"]
    with pytest.raises(errors.AgentinaError) as caught:
        ours.choose_addresses(target, ["10.0.0.1", "169.254.169.254"])
    assert caught.value.context["reason"] == "address"
    assert "metadata" in caught.value.message

"""Which hosts a task may reach, and which addresses nobody may. Pure: names are resolved by whoever asks.

A host is allowed when the job's scope and the host's policy both name it. Patterns: ``example.com`` (that name only),
``*.example.com`` (names below it, at any depth, not the name itself), ``*`` (every name), each with an optional
``:PORT``; without one they mean the ports of http and https. What a name resolves to is judged apart, and the
connection is made to the address that was judged, so a name cannot be rebound in between.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agentina import errors

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Ports a pattern without one stands for.
USUAL_PORTS: Final = frozenset({80, 443})
_MAX_PORT: Final = 65_535
#: RFC 1035: bytes of a name, and of a label. Underscores are used, although no host name has one.
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
#: What inet_aton(3) would read as a number, in full or as the last part: ``127.1``, ``0x7f000001``, ``2130706433``.
_NUMERIC_END: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254})(?::(?P<port>[0-9]{1,5}))?")

#: Never reachable, whatever an owner permits: the clouds' metadata services hand out the host's credentials.
METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16",
                 "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
)  # fmt: skip
#: Prefixes of IPv6 that carry an IPv4 address in their last 32 bits (RFC 6052, RFC 4291).
_CARRY_LAST: Final = tuple(ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96"))
#: Private use of the above (RFC 8215): where in it the IPv4 address is, its network decides, so it is refused.
_LOCAL_TRANSLATION: Final = ipaddress.IPv6Network("64:ff9b:1::/48")


class Target(NamedTuple):
    """Where a request wants to go: a name or address in canonical form (lower case, no brackets), and a port."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """As a Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str, *, default_port: int | None = None) -> Target:
    """Read ``HOST:PORT``, or ``HOST`` where there is a default.

    Raises:
        AgentinaError: ``GATEWAY_REQUEST_INVALID``.

    """
    match = _AUTHORITY.fullmatch(text)
    port = default_port if match is None or match["port"] is None else int(match["port"])
    if match is None or port is None or not 0 < port <= _MAX_PORT:
        raise errors.GATEWAY_REQUEST_INVALID(problem=f"expected HOST:PORT, got {text[:200]!r}")
    return Target(canonical_host(match["host"]), port)


def canonical_host(text: str) -> str:
    """One spelling for each host: lower case, no final dot, addresses as :mod:`ipaddress` writes them.

    Raises:
        AgentinaError: ``GATEWAY_REQUEST_INVALID``.

    """
    host = text.lower()
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if _NUMERIC_END.fullmatch(host.rstrip(".")):
            return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise errors.GATEWAY_REQUEST_INVALID(problem=f"{text[:200]!r} is no address") from error
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host):
        raise errors.GATEWAY_REQUEST_INVALID(problem=f"{text[:200]!r} is no host name")
    return host


def check_pattern(pattern: str) -> None:
    """Make sure that a pattern of an allow-list can match something.

    Raises:
        AgentinaError: ``GATEWAY_REQUEST_INVALID``.

    """
    name = pattern.removeprefix("*.") if pattern.startswith("*.") else pattern.replace("*", "any", 1)
    parse_target(name, default_port=443)


def matches(target: Target, pattern: str) -> bool:
    """Whether one pattern names the target; a pattern that makes no sense names none."""
    name, colon, port = pattern.rpartition(":")
    if not colon or not port.isdecimal() or (pattern.startswith("[") and not name.endswith("]")):
        name, port = pattern, ""
    if not (target.port == int(port) if port else target.port in USUAL_PORTS):
        return False
    if name == "*":
        return True
    try:
        host = canonical_host(name.removeprefix("*."))
    except errors.AgentinaError:
        return False
    if not name.startswith("*."):
        return target.host == host
    # An address has dots as well; "*.0.0.1" must not match it.
    return target.host.endswith(f".{host}") and not _is_address(target.host)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What one task may reach."""

    #: The job's scope: nothing that it does not name.
    scope: Sequence[str] = ()
    #: The host owner's list; None: no restriction.
    policy: Sequence[str] | None = None
    #: Networks the owner opens although they are private.
    networks: tuple[Network, ...] = ()

    def check_target(self, target: Target) -> None:
        """Judge the name.

        Raises:
            AgentinaError: ``EGRESS_REFUSED`` with ``reason`` ``scope`` or ``policy``.

        """
        for reason, patterns, owner in (
            ("scope", self.scope, "the job's scope.hosts does not name it"),
            ("policy", self.policy, "the policy of the host's owner does not name it"),
        ):
            if patterns is not None and not any(matches(target, pattern) for pattern in patterns):
                raise errors.EGRESS_REFUSED(host=target.host, port=target.port, reason=reason, problem=owner)

    def choose_addresses(self, target: Target, found: Iterable[str]) -> list[str]:
        """The addresses of ``found`` that may be connected to, in their order.

        Raises:
            AgentinaError: ``EGRESS_REFUSED`` with ``reason`` ``address`` when there is none.

        """
        refused = []
        chosen = []
        for text in found:
            why = self.why_forbidden(text)
            if why is None:
                chosen.append(text)
            else:
                refused.append(f"{text[:60]} is {why}")
        if not chosen:
            problem = "; ".join(refused[:4]) or "it has no address"
            raise errors.EGRESS_REFUSED(host=target.host, port=target.port, reason="address", problem=problem)
        return chosen

    def why_forbidden(self, text: str) -> str | None:
        """What an address is that no task may reach; None: it may."""
        try:
            address = embedded(ipaddress.ip_address(text.partition("%")[0]))
        except ValueError:
            return "no address"
        if address in METADATA:
            return "a metadata service"
        if any(address.version == network.version and address in network for network in self.networks):
            return None
        return _kind_of(address)


def embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, where it does; else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
    if inner is not None:
        return inner
    low = int(address) & 0xFFFFFFFF
    if low > 1 and any(address in network for network in _CARRY_LAST):
        return ipaddress.IPv4Address(low)
    return address


def _kind_of(address: Address) -> str | None:
    """The kind of an address that is not of the public internet; None: it is."""
    kinds = (
        ("loopback", address.is_loopback),
        ("link-local", address.is_link_local),
        ("multicast", address.is_multicast),
        ("unspecified", address.is_unspecified),
        ("private", address.is_private or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)),
        ("reserved", address.is_reserved or not address.is_global or address in _LOCAL_TRANSLATION),
    )
    return next((name for name, holds in kinds if holds), None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

"""Addresses of control planes, and the proxy on the way to them: one set of rules for daemon and command line."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from typing import Final

from agentina import errors

_WHERE: Final = "control plane"
_TLS_PORT: Final = 443
_PLAIN_PORT: Final = 80
#: Port of a proxy that is named without one.
_PROXY_PORT: Final = 3128
#: Characters of a wrong address that are repeated in the error.
_SHOWN: Final = 200
#: What a request's target may hold (RFC 9112).
_PATH: Final = re.compile(r"[!-~]*")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A control plane's address, checked; ``str()`` gives it in its one canonical form."""

    host: str
    port: int
    #: https; else http, to this machine only.
    tls: bool
    #: What stands before ``/v1`` when it is served below a path; no slash at the end.
    prefix: str = ""

    @property
    def authority(self) -> str:
        """``HOST`` or ``HOST:PORT`` as a URL and a Host header have it: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (_TLS_PORT if self.tls else _PLAIN_PORT) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


def parse(url: str) -> Address:
    """Check a control plane's URL.

    Raises:
        AgentinaError: ``INPUT_INVALID``, or ``URL_INSECURE`` for plain http to anything but loopback.

    """
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise errors.INPUT_INVALID(where=_WHERE, problem=f"{_show(url)} is no address: {error}") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not repeated: it may hold a password.
        raise errors.INPUT_INVALID(where=_WHERE, problem="expected no user, password, query or fragment in the address")
    if parts.scheme not in {"http", "https"} or not host:
        problem = f"expected an address such as https://agents.example.com, got {_show(url)}"
        raise errors.INPUT_INVALID(where=_WHERE, problem=problem)
    host = _to_ascii(host, url)
    if not _PATH.fullmatch(parts.path):
        problem = f"expected a path with other characters than ASCII's as %XX, got {_show(url)}"
        raise errors.INPUT_INVALID(where=_WHERE, problem=problem)
    tls = parts.scheme == "https"
    if not tls and not _is_loopback(host):
        raise errors.URL_INSECURE(url=url.strip()[:_SHOWN])
    port = port or (_TLS_PORT if tls else _PLAIN_PORT)
    return Address(host=host, port=port, tls=tls, prefix=parts.path.rstrip("/"))


def proxy_for(address: Address, environment: Mapping[str, str]) -> tuple[str, int] | None:
    """The HTTP proxy that ``HTTPS_PROXY`` names for ``address``, unless ``NO_PROXY`` excepts it; https only.

    Raises:
        AgentinaError: ``INPUT_INVALID`` when the variable is no ``http://HOST:PORT``.

    """
    chosen = environment.get("HTTPS_PROXY") or environment.get("https_proxy") or ""
    if not address.tls or not chosen or _is_loopback(address.host):
        return None
    excepted = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    for part in (word.strip().lstrip(".").lower() for word in excepted.split(",")):
        if part and (part in {"*", address.host} or address.host.endswith("." + part)):
            return None
    try:
        parts = urllib.parse.urlsplit(chosen if "://" in chosen else f"http://{chosen}")
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme != "http" or not host:
        raise errors.INPUT_INVALID(where="HTTPS_PROXY", problem="expected http://HOST:PORT")
    return host, port or _PROXY_PORT


def _to_ascii(host: str, url: str) -> str:
    """A host's name as resolvers and servers take it (RFC 3490)."""
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise errors.INPUT_INVALID(where=_WHERE, problem=f"{_show(url)} has no name of a host") from error


def _show(url: str) -> str:
    return "an address with a user" if "@" in url else repr(url[:_SHOWN])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

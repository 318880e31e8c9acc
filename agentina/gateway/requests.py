"""What a task asks of the gateway: reading of request heads, strict. Pure.

h11 has the grammar; what it forgives is refused here before it sees it, because two readers that disagree about where a
request ends are how one is smuggled past the first: bare line feeds, folded lines, a body with two lengths, a request
line and a Host header that name different hosts. Bodies are re-framed on their way, so nothing of their framing passes.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
from typing import Final

import h11

from agentina import errors
from agentina.gateway import rules

#: Longest head, in bytes, and most fields in it.
MAX_HEAD: Final = 32_768
MAX_FIELDS: Final = 128
HEAD_END: Final = b"\r\n\r\n"

_ABSOLUTE: Final = re.compile(r"(?i:http)://(?P<authority>[^/?#]+)(?P<path>/[^#]*)?(?P<query>\?[^#]*)?")
#: RFC 9110 7.6.1: of one connection, not of the message; and what only the proxy is told.
_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"te",
     b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"host", b"expect"}
)  # fmt: skip


class Form(enum.Enum):
    """The kinds of request."""

    #: CONNECT: a tunnel to a host.
    TUNNEL = "tunnel"
    #: A URL in the request line: plain http, perhaps to become a websocket.
    FORWARD = "forward"
    #: A path: for the gateway itself, which serves models there.
    OWN = "own"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request whose head was read."""

    form: Form
    method: str
    #: Path and query.
    path: str
    #: Names in lower case.
    headers: list[tuple[bytes, bytes]]
    #: Where it wants to go; None for ``OWN``.
    target: rules.Target | None = None
    #: The protocol it wants to change to, in lower case; empty: none.
    upgrade: str = ""

    def header(self, name: bytes) -> bytes | None:
        """The value of the first field of that name (lower case)."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def is_bodiless(self) -> bool:
        """Whether nothing follows the head."""
        return self.header(b"transfer-encoding") is None and (self.header(b"content-length") or b"0") == b"0"

    @property
    def most_bytes(self) -> int:
        """How many bytes follow the head at most; where that is open, as many as anybody likes."""
        length = self.header(b"content-length")
        return sys.maxsize if length is None and not self.is_bodiless else int(length or 0)

    def passed_on(self, *, without: frozenset[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
        """The fields that go to the next server, without those of this connection; Host and length are the sender's."""
        return end_to_end(self.headers, without=without)


def end_to_end(
    headers: list[tuple[bytes, bytes]], *, without: frozenset[bytes] = frozenset()
) -> list[tuple[bytes, bytes]]:
    """The fields of a message that are not of one connection."""
    named = {
        word.strip().lower() for key, value in headers if key == b"connection" for word in value.split(b",")
    }  # fmt: skip
    dropped = _HOP | named | without
    return [(key, value) for key, value in headers if key not in dropped]


def check_raw(head: bytes) -> None:
    """Refuse a head that another reader could see otherwise.

    Raises:
        AgentinaError: ``GATEWAY_REQUEST_INVALID``.

    """
    rest = head.replace(b"\r\n", b"")
    if b"\n" in rest or b"\r" in rest or b"\0" in rest:
        raise _invalid("a control character in the head")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise _invalid("a folded header line")
    if head.startswith(b"\r\n"):
        raise _invalid("an empty line before the request")


def read(event: h11.Request) -> Request:
    """Understand a request whose raw head passed :func:`check_raw`.

    Raises:
        AgentinaError: ``GATEWAY_REQUEST_INVALID``.

    """
    headers = [(bytes(name), bytes(value)) for name, value in event.headers]
    _check_headers(headers, event)
    method, text = event.method.decode("ascii"), event.target.decode("ascii")
    host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
    upgrade = _upgrade(headers)
    if method == "CONNECT":
        target = rules.parse_target(text)
        _check_host(host, target, default_port=target.port)
        if any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
        ):
            raise _invalid("CONNECT with a body")
        return Request(form=Form.TUNNEL, method=method, path="", headers=headers, target=target)
    if text.startswith("/"):
        return Request(form=Form.OWN, method=method, path=text, headers=headers, upgrade=upgrade)
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        raise _invalid(f"expected CONNECT, an http:// URL or a path, got {text[:200]!r}")
    target = rules.parse_target(match["authority"], default_port=80)
    _check_host(host, target, default_port=80)
    path = (match["path"] or "/") + (match["query"] or "")
    return Request(form=Form.FORWARD, method=method, path=path, headers=headers, target=target, upgrade=upgrade)


def _check_headers(headers: list[tuple[bytes, bytes]], event: h11.Request) -> None:
    if event.http_version != b"1.1":
        raise _invalid(f"expected HTTP/1.1, got HTTP/{event.http_version.decode('ascii')}")
    if len(headers) > MAX_FIELDS:
        raise _invalid(f"{len(headers)} header fields; at most {MAX_FIELDS} are read")
    names = [name for name, _ in headers]
    for single in (b"host", b"content-length", b"transfer-encoding"):
        if names.count(single) > 1:
            raise _invalid(f"more than one {single.decode()} field")
    if b"content-length" in names and b"transfer-encoding" in names:
        raise _invalid("a body with two lengths (Content-Length and Transfer-Encoding)")


def _check_host(host: str, target: rules.Target, *, default_port: int) -> None:
    if rules.parse_target(host, default_port=default_port) != target:
        raise _invalid(f"the Host header names {host[:200]!r}, the request line {target.authority}")


def _upgrade(headers: list[tuple[bytes, bytes]]) -> str:
    wanted = [value.decode("latin-1").strip().lower() for name, value in headers if name == b"upgrade"]
    options = ",".join(value.decode("latin-1").lower() for name, value in headers if name == b"connection")
    if not wanted or "upgrade" not in [word.strip() for word in options.split(",")]:
        return ""
    return ",".join(wanted)


def _invalid(problem: str) -> errors.AgentinaError:
    return errors.GATEWAY_REQUEST_INVALID(problem=problem)

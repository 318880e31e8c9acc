"""HTTP/1.1 as the daemon speaks it (RFC 9112): requests are written whole, answers are read strictly. Pure, no I/O.

| an answer | is |
| --- | --- |
| head of more than 64 KiB, a line that is no field, a control character, a line folded or ended by LF alone | refused |
| 1xx but 101 | passed over, a few of them |
| 204, 304 | without a body |
| Transfer-Encoding: chunked, alone, in HTTP/1.1 | read chunk by chunk; extensions and trailers are passed over |
| any other Transfer-Encoding, or one beside Content-Length | refused: two ways to find the end may find two ends |
| Content-Length, the same if there are several | read to that length |
| neither | read until the connection ends |
| a body larger than the caller's limit | refused, before it is read where its length is told |

The connection serves another request unless the answer is HTTP/1.0, says ``close``, ended with it, or more bytes came
than belong to it: those must not be taken for the next answer.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import Final, NamedTuple

#: Most bytes of a head, of the line before a chunk, and of the trailers.
_MAX_HEAD: Final = 65_536
_MAX_INFORMATIONAL: Final = 8
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: .*)?", re.DOTALL)
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_TARGET: Final = re.compile(r"[!-~]+")
_VALUE: Final = re.compile(r"[ -~]*")

_SWITCHING: Final = 101
_NO_BODY: Final = {204, 304}
_FIRST_FINAL: Final = 200

#: Reads on when there is more; returns what it read.
Step = Generator[None, None, bytes]


class UnreadableError(Exception):
    """The answer is not HTTP as expected; the text says in what."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    #: Names in lower case.
    headers: list[tuple[bytes, bytes]]
    body: bytes
    #: The connection serves no other request.
    is_last: bool

    def header(self, name: bytes) -> str | None:
        """The first value of a header (lower-case ``name``), or None."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


class _Head(NamedTuple):
    is_old: bool
    status: int
    headers: list[tuple[bytes, bytes]]

    def words(self, name: bytes) -> list[bytes]:
        """All members of a header that holds a list."""
        values = [value for key, value in self.headers if key == name]
        return [word.strip(b" \t").lower() for value in values for word in value.split(b",")]


def request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """A request with its body.

    Raises:
        ValueError: Something in it would end its line early.

    """
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers:
        if not _VALUE.fullmatch(value):
            raise ValueError(f"a character in the value of {name} cannot be sent")
        lines.append(f"{name}: {value}")
    if not _TARGET.fullmatch(target):
        raise ValueError(f"the target {target!r} holds a character that cannot be sent")
    lines.append(f"Content-Length: {len(body)}\r\n\r\n")
    return "\r\n".join(lines).encode("ascii") + body


class Reader:
    """Reads one answer from the bytes as they come."""

    def __init__(self, *, limit: int) -> None:
        """``limit``: largest body, in bytes."""
        self._limit = limit
        self._buffer = bytearray()
        self._is_ended = False
        self._steps = self._read()

    def feed(self, data: bytes) -> Answer | None:
        """Take what came (nothing: the connection has ended); the answer once it is whole.

        Raises:
            UnreadableError: It will never be one.

        """
        self._buffer += data
        self._is_ended = not data
        try:
            next(self._steps)
        except StopIteration as whole:
            answer: Answer = whole.value
            return answer
        return None

    def _read(self) -> Generator[None, None, Answer]:
        for _ in range(_MAX_INFORMATIONAL):
            head = _head((yield from self._until(b"\r\n\r\n")))
            if head.status >= _FIRST_FINAL:
                break
        else:
            raise UnreadableError("informational answers without end")
        codings, lengths = head.words(b"transfer-encoding"), set(head.words(b"content-length"))
        is_last = head.is_old or b"close" in head.words(b"connection")
        if head.status in _NO_BODY:
            body = b""
        elif codings:
            if codings != [b"chunked"] or lengths or head.is_old:
                raise UnreadableError("a Transfer-Encoding other than chunked alone")
            body = yield from self._chunks()
        elif lengths:
            body = yield from self._exactly(self._length(lengths))
        else:
            is_last = True
            body = yield from self._rest()
        return Answer(head.status, head.headers, body, is_last or bool(self._buffer))

    def _length(self, lengths: set[bytes]) -> int:
        told = lengths.pop()
        if lengths or not _LENGTH.fullmatch(told):
            raise UnreadableError("a Content-Length that is no number")
        self._check_size(int(told))
        return int(told)

    def _chunks(self) -> Step:
        body = bytearray()
        while True:
            line = _CHUNK.fullmatch((yield from self._until(b"\r\n")))
            if line is None:
                raise UnreadableError("a chunk without its size")
            size = int(line[1], 16)
            if not size:
                break
            self._check_size(len(body) + size)
            body += yield from self._exactly(size)
            if (yield from self._exactly(2)) != b"\r\n":
                raise UnreadableError("a chunk longer than its size")
        left = _MAX_HEAD
        while trailer := (yield from self._until(b"\r\n")):
            left -= len(trailer)
            if left < 0:
                raise UnreadableError("trailers without end")
        return bytes(body)

    def _rest(self) -> Step:
        while not self._is_ended:
            self._check_size(len(self._buffer))
            yield
        return self._take(len(self._buffer))

    def _exactly(self, size: int) -> Step:
        while len(self._buffer) < size:
            yield from self._more()
        return self._take(size)

    def _until(self, mark: bytes) -> Step:
        """What comes before ``mark``, which is passed over."""
        searched = 0
        while (end := self._buffer.find(mark, searched, _MAX_HEAD)) < 0:
            searched = max(len(self._buffer) - len(mark) + 1, 0)
            if searched >= _MAX_HEAD:
                raise UnreadableError(f"more than {_MAX_HEAD} bytes of head")
            yield from self._more()
        taken = self._take(end)
        del self._buffer[: len(mark)]
        return taken

    def _more(self) -> Generator[None, None, None]:
        if self._is_ended:
            raise UnreadableError("the connection was closed before an answer")
        yield

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise UnreadableError(f"more than {self._limit} bytes")


def _head(content: bytes) -> _Head:
    if _CONTROL.search(content.replace(b"\r\n", b"")):
        raise UnreadableError("a control character in its head")
    first, *lines = content.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise UnreadableError("no status line")
    if int(status[2]) == _SWITCHING:
        raise UnreadableError("another protocol, which nobody asked for")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise UnreadableError("a line of its head is no field")
        headers.append((name.lower(), value.strip(b" \t")))
    return _Head(status[1] == b"0", int(status[2]), headers)

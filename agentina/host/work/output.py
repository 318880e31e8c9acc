"""A task's output on its way: read by offset, secrets masked by asterisks of the same length.

Masking never depends on where pieces begin or end: every piece is masked with as much text around it as the longest
secret needs, so that the same byte of the file always becomes the same byte of the upload, also when the control plane
asks for an earlier offset again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from agentina.protocol import wire

_STAR = 0x2A


def mask(data: bytes, secrets: list[bytes]) -> bytes:
    """``data`` with every occurrence of every secret, overlapping ones too, replaced by asterisks."""
    masked: bytearray | None = None
    for secret in secrets:
        at = data.find(secret)
        while at >= 0:
            if masked is None:
                masked = bytearray(data)
            masked[at : at + len(secret)] = bytes((_STAR,)) * len(secret)
            at = data.find(secret, at + 1)
    return data if masked is None else bytes(masked)


def held_back(data: bytes, secrets: list[bytes]) -> int:
    """Bytes at the end of ``data`` that may be the beginning of a secret still being written."""
    longest = 0
    for secret in secrets:
        for size in range(min(len(secret) - 1, len(data)), longest, -1):
            if data.endswith(secret[:size]):
                longest = size
                break
    return longest


class Piece(NamedTuple):
    """Masked bytes to send from ``offset`` on."""

    offset: int
    data: bytes


def read_piece(path: Path, offset: int, secrets: list[bytes], *, final: bool, most: int = wire.MAX_PIECE) -> Piece:
    """The next masked piece from ``offset`` on, at most ``most`` bytes; empty when there is nothing to send yet.

    Args:
        path: The output file. One that is gone, or is no file any more, has nothing more.
        offset: First byte wanted.
        secrets: Values to mask, UTF-8.
        final: Nothing more will be written, so nothing is held back for a secret to be completed.
        most: Largest piece.

    """
    around = max((len(secret) for secret in secrets), default=1) - 1
    begin = max(0, offset - around)
    try:
        # O_NONBLOCK: a task may put a FIFO in its place, whose opening would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return Piece(offset, b"")
    try:
        window = _read(descriptor, begin, offset - begin + most + around)
    except OSError:
        return Piece(offset, b"")
    finally:
        os.close(descriptor)
    front = offset - begin
    end = min(len(window), front + most)
    if end == len(window) and not final:
        end -= held_back(window, secrets)
    if end <= front:
        return Piece(offset, b"")
    return Piece(offset, mask(window, secrets)[front:end])


def _read(descriptor: int, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` on, fewer only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    if not data or len(data) == size:
        return data
    pieces = [data]
    got = len(data)
    while got < size:
        data = os.pread(descriptor, size - got, offset + got)
        if not data:
            break
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)

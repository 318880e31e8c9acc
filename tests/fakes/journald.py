"""A journald that takes entries of the native protocol on a real socket, as strict as the real one about them."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import socket
from pathlib import Path

Entry = dict[str, str]

_NAME = re.compile(r"[A-Z0-9][A-Z0-9_]{0,63}")
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def parse(entry: bytes) -> Entry:
    """The fields of one entry (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/)."""
    fields: Entry = {}
    rest = entry
    while rest:
        line, newline, after = rest.partition(b"\n")
        assert newline, "an entry ends with a line break"
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(after[:8], "little")
            value, after = after[8 : 8 + size], after[8 + size :]
            assert len(value) == size
            assert after[:1] == b"\n"
            after = after[1:]
        assert _NAME.fullmatch(name.decode("ascii")), name
        assert name.decode() not in fields, "each of our fields is there once"
        fields[name.decode()] = value.decode()
        rest = after
    return fields


class Journald:
    """Collects what is sent to ``path`` until :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(0)
        #: Entries that came as a sealed file in memory.
        self.sealed = 0

    def take(self) -> list[Entry]:
        """What has come since the last call."""
        found: list[Entry] = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 20, 4)
            except BlockingIOError:
                return found
            if descriptors:
                assert not data
                data = self._read(*descriptors)
            found.append(parse(data))

    def close(self) -> None:
        """Go away, as journald does when it is restarted."""
        self._socket.close()
        self.path.unlink()

    def _read(self, descriptor: int) -> bytes:
        try:
            assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _SEALED
            self.sealed += 1
            with mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ) as content:
                return bytes(content)
        finally:
            os.close(descriptor)

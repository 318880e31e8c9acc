"""The systemd journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/), without libsystemd.

An entry is one datagram of fields to journald's socket; one too large for a datagram goes as a sealed memfd. Sending
never waits: while journald is stuck or away, entries are dropped and counted, and the next one that gets through comes
with a line that says how many are missing. A daemon whose log stops must go on; a gap nobody knows of must not be.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
#: Where journald keeps what it has: for good, or until the next boot (Storage= in journald.conf(5)).
_STORES: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
_STREAM: Final = "JOURNAL_STREAM"
_SIZE: Final = struct.Struct("<Q")
_DESCRIPTOR: Final = struct.Struct("i")
#: The kernel's answers to a datagram that is larger than the socket takes.
_TOO_LARGE: Final = {errno.EMSGSIZE, errno.ENOBUFS}
#: journald reads a memfd only when nobody can change it any more.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

Fields = Iterable[tuple[str, str]]


def is_stderr() -> bool:
    """Whether this process's standard error is the journal (JOURNAL_STREAM in systemd.exec(5)).

    The variable is inherited by children whose standard error may be something else, so device and inode must agree.
    """
    device, colon, inode = os.environ.get(_STREAM, "").partition(":")
    if not (colon and device.isdecimal() and inode.isdecimal()):
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode))


def is_readable(stores: Iterable[Path] = _STORES) -> bool:
    """Whether this user may read what services wrote; True also where there is no journal (yet)."""
    found = [path for store in stores for path in store.glob("*/system.journal")]
    return not found or any(os.access(path, os.R_OK) for path in found)


def encode(fields: Fields) -> bytes:
    """An entry. A value with a line break is sent with its length, so that nothing in it can pass for a field."""
    entry = bytearray()
    for name, value in fields:
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            entry += b"%s\n%s%s\n" % (name.encode("ascii"), _SIZE.pack(len(data)), data)
        else:
            entry += b"%s=%s\n" % (name.encode("ascii"), data)
    return bytes(entry)


class Sender:
    """Sends entries of one process. Not for several threads at once: :mod:`logging` holds a lock around it."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        #: Entries dropped since the last one that got through.
        self.lost = 0

    def is_heard(self) -> bool:
        """Whether journald's socket is there and takes datagrams from this process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as trial:
            return trial.connect_ex(self._path) == 0

    def send(self, fields: Fields, *, gap: Fields = ()) -> bool:
        """Send an entry; False when it had to be dropped.

        Args:
            fields: Names (upper case, digits, underscore; at most 64 characters) and values.
            gap: Fields besides MESSAGE and PRIORITY of the line that tells of dropped entries.

        """
        if self.lost:
            said = f"{self.lost} earlier log messages are missing here: the journal did not take them"
            if not self._send(encode([("MESSAGE", said), ("PRIORITY", "4"), *gap])):
                self.lost += 1
                return False
            self.lost = 0
        if self._send(encode(fields)):
            return True
        self.lost += 1
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, entry: bytes) -> bool:
        # By address and without a connection: journald may be restarted, and its socket with it, at any time.
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            return error.errno in _TOO_LARGE and self._send_sealed(entry)
        return True

    def _send_sealed(self, entry: bytes) -> bool:
        """Send a large entry as a file in memory: its descriptor, in a datagram that is otherwise empty."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                stack.callback(os.close, descriptor)
                view = memoryview(entry)
                while view:
                    view = view[os.write(descriptor, view) :]
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
                # socket.send_fds() of Python 3.11 ignores the address.
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))
                self._socket.sendmsg([], [rights], 0, self._path)
            except OSError:
                return False
        return True

"""Telling PID 1 how a service is: the datagram protocol of sd_notify(3), without libsystemd."""

from __future__ import annotations

import os
import socket
from typing import Final

_SOCKET: Final = "NOTIFY_SOCKET"
_INTERVAL: Final = "WATCHDOG_USEC"
_PID: Final = "WATCHDOG_PID"


def send(*lines: str) -> bool:
    """Send ``lines`` such as ``READY=1``; False when nobody listens."""
    address = os.environ.get(_SOCKET, "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True


def watchdog_seconds() -> float | None:
    """Seconds within which the manager wants to hear ``WATCHDOG=1`` from this process; None: it does not."""
    interval, pid = os.environ.get(_INTERVAL, ""), os.environ.get(_PID, "")
    if not interval.isdecimal() or int(interval) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(interval) / 1_000_000

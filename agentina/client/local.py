"""Ask the daemon of an instance through its Unix socket: one JSON line out, one JSON line back. Blocking.

Answers are plain data in the shape of :class:`agentina.protocol.local.InstanceStatus`: `agentina status` must start
fast, so this module loads neither structs nor asyncio.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any, Final

from agentina import errors
from agentina.system import paths

#: Longest answer line read, in bytes (agentina.protocol.local.MAX_LINE).
_MAX_LINE: Final = 8 << 20
_PIECE: Final = 65_536


def ask(
    instance: paths.InstancePaths, verb: str, *, reason: str = "", move: bool = False, timeout_seconds: float = 5.0
) -> dict[str, Any]:
    """Carry out ``verb`` (``status``, ``drain``, ``resume``, ``refresh``, ``reload``, ``probe``); the status after it.

    Raises:
        AgentinaError: ``DAEMON_NOT_RUNNING`` when nobody listens or it does not answer in time, ``LOCAL_FORBIDDEN``
            when this user may not, ``ANSWER_UNREADABLE``, or what the daemon refused with.

    """
    request: dict[str, Any] = {"verb": verb, "reason": reason} if reason else {"verb": verb}
    if move:
        request["move"] = True
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(str(instance.socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(connection)
    except PermissionError as error:
        raise _forbidden(instance, verb) from error
    except OSError as error:
        raise _not_running(instance) from error
    try:
        return _status(line, instance)
    except errors.AgentinaError as error:
        if error.entry is not errors.LOCAL_FORBIDDEN:
            raise
        # The daemon's user namespace has no name for who asked.
        raise _forbidden(instance, verb) from error


def _forbidden(instance: paths.InstancePaths, verb: str) -> errors.AgentinaError:
    """Names the group that would let this user look."""
    import grp  # noqa: PLC0415 - seldom needed
    import os  # noqa: PLC0415

    from agentina.system import users  # noqa: PLC0415

    group = "agentina"
    with contextlib.suppress(KeyError, OSError):
        group = grp.getgrgid(instance.socket.stat().st_gid).gr_name
    return errors.LOCAL_FORBIDDEN(user=users.name_of(os.geteuid()), verb=verb, group=group)


def _not_running(instance: paths.InstancePaths) -> errors.AgentinaError:
    """Names the command that starts this very daemon: the service's, or the process's where there is no service."""
    import shlex  # noqa: PLC0415 - `agentina status` starts fast and seldom needs them

    from agentina.system import services  # noqa: PLC0415

    which = "" if instance.name == "default" else f" --instance {instance.name}"
    root = "" if instance.layout.is_system else f" --root {shlex.quote(str(instance.layout.root))}"
    start = f"agentina daemon{which}{root}"
    if instance.layout.is_system and services.runs_here():
        start = f"systemctl start {services.unit_of(instance.name)}"
    logs = f"agentina logs{which}{root}"
    return errors.DAEMON_NOT_RUNNING(instance=instance.name, path=str(instance.socket), start=start, logs=logs)


def _read_line(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n") and len(received) <= _MAX_LINE:
        piece = connection.recv(_PIECE)
        if not piece:
            break
        received += piece
    return bytes(received)


def _status(line: bytes, instance: paths.InstancePaths) -> dict[str, Any]:
    if not line:
        raise _not_running(instance)
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise errors.ANSWER_UNREADABLE(what="the daemon's line is not JSON or was cut off") from error
    if isinstance(answer, dict) and answer.get("error"):
        fault = answer["error"]
        # Accepts the error itself and the body of an error answer, which wraps it.
        raise errors.from_wire(fault if "error" in fault else {"error": fault}, status=400)
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, dict):
        raise errors.ANSWER_UNREADABLE(what="the daemon's answer holds no status")
    return status

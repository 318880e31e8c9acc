"""Says one thing to the task's daemon through the task's own socket, and returns what it answers. Blocking.

The daemon may be away for a moment (it is restarted or updated; a task that has just begun has no door yet): it is
waited for, and what was not answered is said again under the same id, which counts once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any, Final

#: Where the socket is; set in every task.
VARIABLE: Final = "AGENTINA_TASK_SOCKET"
#: Seconds the daemon may be away, and seconds between two tries.
PATIENCE: Final = 60.0
_AGAIN: Final = 0.05
#: Seconds an answer may take beyond the wait that was asked for.
_MARGIN: Final = 30.0
#: Bytes of an answer (agentina.protocol.verbs.MAX_ANSWER), and of one read.
_MOST: Final = 65_536
#: Bytes of a request (agentina.protocol.verbs.MAX_REQUEST).
_MOST_SAID: Final = 32_768
_PIECE: Final = 65_536


class ClosedError(Exception):
    """There is no daemon behind the door, and has not been for as long as one waits."""


class NoDoorError(Exception):
    """This process is not in a task, or its host knows no verbs."""


class TooLongError(Exception):
    """The daemon would not read a request of that length. ``size`` and ``limit`` in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it has {size} bytes; at most {_MOST_SAID} are taken")
        self.size, self.limit = size, _MOST_SAID


def ask(request: dict[str, Any], *, path: str | None = None, patience: float = PATIENCE) -> dict[str, Any]:
    """Say ``request`` (:mod:`agentina.protocol.verbs`, without its id); the answer as plain data.

    Args:
        request: The verb and its fields.
        path: The socket; None: as the environment says.
        patience: Seconds to go on trying.

    Raises:
        NoDoorError: No socket is named.
        ClosedError: Nobody listens, or the answer does not come.
        TooLongError: The request is too long for any daemon.

    """
    path = os.environ.get(VARIABLE, "") if path is None else path
    if not path:
        raise NoDoorError
    line = json.dumps({**request, "id": os.urandom(8).hex()}).encode() + b"\n"
    if len(line) > _MOST_SAID:
        raise TooLongError(len(line))
    wait = float(request.get("wait") or 0.0)
    deadline = time.monotonic() + patience
    while True:
        try:
            answer = _ask_once(path, line, wait + _MARGIN)
        except OSError as error:
            problem = error.strerror or str(error) or type(error).__name__
        else:
            if answer is not None:
                return answer
            problem = "it was closed without an answer"
        if time.monotonic() >= deadline + wait:
            raise ClosedError(problem)
        time.sleep(_AGAIN)


def _ask_once(path: str, line: bytes, seconds: float) -> dict[str, Any] | None:
    """Ask; None: the daemon went away before it had answered."""
    # However long the path is: unix(7) takes 107 bytes.
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")  # noqa: PTH119
            connection.sendall(line)
            received = bytearray()
            while not received.endswith(b"\n") and len(received) <= _MOST:
                piece = connection.recv(_PIECE)
                if not piece:
                    return None
                received += piece
    finally:
        os.close(directory)
    with contextlib.suppress(ValueError):
        answer = json.loads(received)
        if isinstance(answer, dict):
            return answer
    return None

"""An HTTP server on a real socket that answers what a test scripted, byte for byte, and records what it was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Cut(bytes):
    """Bytes after which the connection is closed."""


#: A scripted answer: bytes to send as they are (the connection is closed after an empty one), or a function of the
#: request that gives them.
Script = bytes | Callable[[Asked], bytes]


def answer(content: Any = None, *, status: int = 200, headers: dict[str, str] | None = None) -> bytes:
    """A whole HTTP answer with a JSON (or raw bytes) body."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(code: str, *, status: int, **context: Any) -> bytes:
    """An error answer of the control plane."""
    return answer({"error": {"code": code, "message": "", "remedy": "", "context": context}}, status=status)


class ScriptedServer:
    """Answers requests in the order of its script; the last entry is repeated."""

    def __init__(self, *script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.script = list(script)
        self.asked: list[Asked] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._serving: list[tuple[socket.socket, threading.Thread]] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def wait_closed(self) -> None:
        """Wait until every connection accepted so far was closed by a :class:`Cut`."""
        for _, thread in self._serving:
            thread.join()

    def close(self) -> None:
        # shutdown wakes a blocked accept; close alone does not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection, thread in self._serving:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._serving.append((connection, thread))
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        reader = connection.makefile("rb")
        try:
            while True:
                request_line = reader.readline().decode()
                if not request_line:
                    break
                method, path, _ = request_line.split()
                headers: dict[str, str] = {}
                while line := reader.readline().strip().decode():
                    name, _, value = line.partition(":")
                    headers[name.strip().lower()] = value.strip()
                asked = Asked(method, path, headers, reader.read(int(headers.get("content-length", 0))))
                self.asked.append(asked)
                step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                sent = step(asked) if callable(step) else step
                connection.sendall(sent)
                if not sent or isinstance(sent, Cut):
                    break
        except OSError:
            pass
        finally:
            reader.close()
            connection.close()

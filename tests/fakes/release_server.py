"""A release repository on a real socket that can be made to misbehave in every way TUF defends against."""

from __future__ import annotations

import contextlib
import copy
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from tuf.api import metadata

from agentina.updates import ed25519

ROLES: Final = ("root", "timestamp", "snapshot", "targets")
Answer = bytes | int | Callable[[], Iterator[bytes]]


class Repository:
    """Signs what it is told to; ``files`` is what the server answers, open to every tampering."""

    def __init__(self, *, threshold: int = 1) -> None:
        ed25519.register()
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
        self.signers: dict[str, list[ed25519.Signer]] = {}
        self.root = metadata.Root(expires=expires, consistent_snapshot=True)
        self.targets = metadata.Targets(expires=expires)
        self.snapshot = metadata.Snapshot(expires=expires)
        self.timestamp = metadata.Timestamp(expires=expires)
        for role in ROLES:
            self.set_keys(role, [ed25519.Signer.generate() for _ in range(threshold)])
        self.files: dict[str, Answer] = {}
        self.asked: list[str] = []
        self._publish_root()
        self.trusted_root = self.bytes_of("metadata/1.root.json")
        self.publish(bump=False)

    def bytes_of(self, path: str) -> bytes:
        content = self.files[path]
        assert isinstance(content, bytes)
        return content

    def set_keys(self, role: str, signers: list[ed25519.Signer]) -> None:
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        for signer in signers:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = len(signers)
        self.signers[role] = signers

    def rotate(self, role: str) -> list[ed25519.Signer]:
        """Publish a root with a new key for ``role``; the old signers are returned."""
        before = list(self.signers[role])
        former = [*self.signers["root"]]
        self.set_keys(role, [ed25519.Signer.generate() for _ in before])
        self.root.version += 1
        self._publish_root(former)
        return before

    def add(self, name: str, content: bytes) -> None:
        target = metadata.TargetFile.from_data(name, content, ["sha256"])
        self.targets.targets[name] = target
        self.files[self.target_path(name)] = content

    def target_path(self, name: str) -> str:
        digest = self.targets.targets[name].hashes["sha256"]
        folder, slash, base = name.rpartition("/")
        return f"targets/{folder}{slash}{digest}.{base}"

    def publish(self, *, bump: bool = True) -> None:
        """Sign targets, snapshot and timestamp anew, each with the next version."""
        for content in (self.targets, self.snapshot, self.timestamp):
            content.version += 1 if bump else 0
        data = self.sign("targets", self.targets)
        self.files[f"metadata/{self.targets.version}.targets.json"] = data
        self.snapshot.meta["targets.json"] = metadata.MetaFile.from_data(self.targets.version, data, ["sha256"])
        data = self.sign("snapshot", self.snapshot)
        self.files[f"metadata/{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = metadata.MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.files["metadata/timestamp.json"] = self.sign("timestamp", self.timestamp)

    def sign(self, role: str, content: Any, signers: list[ed25519.Signer] | None = None) -> bytes:
        signed: metadata.Metadata[Any] = metadata.Metadata(copy.deepcopy(content))
        for signer in self.signers[role] if signers is None else signers:
            signed.sign(signer, append=True)
        return signed.to_bytes()

    def _publish_root(self, also: list[ed25519.Signer] | None = None) -> None:
        signers = {id(one): one for one in [*self.signers["root"], *(also or [])]}
        data = self.sign("root", self.root, list(signers.values()))
        self.files[f"metadata/{self.root.version}.root.json"] = data


class Server:
    """Serves a repository's ``files`` while the ``with`` block runs."""

    def __init__(self, repository: Repository, *, tls: ssl.SSLContext | None = None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                repository.asked.append(path)
                answer(self, repository.files.get(path, 404))

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        name = "http://127.0.0.1" if tls is None else "https://localhost"
        self.url = f"{name}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def answer(handler: http.server.BaseHTTPRequestHandler, content: Answer) -> None:
    if isinstance(content, int):
        handler.send_response(content)
        handler.send_header("content-length", "0")
        handler.send_header("location", "/metadata/1.root.json")
        handler.end_headers()
        return
    handler.send_response(200)
    if isinstance(content, bytes):
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        return
    handler.end_headers()
    try:
        for piece in content():
            handler.wfile.write(piece)
            handler.wfile.flush()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the client has seen enough, which is what is tested


def endless(piece: bytes = b" " * 65_536) -> Iterator[bytes]:
    while True:
        yield piece


def trickle(pause: float = 0.05) -> Iterator[bytes]:
    while True:
        yield b" "
        time.sleep(pause)


class Dripping(threading.Thread):
    """A server that answers with headers, a byte at a time, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        self._listener.close()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)


def silence() -> Iterator[bytes]:
    yield b"{"
    time.sleep(5)

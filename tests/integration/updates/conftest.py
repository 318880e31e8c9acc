from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import release_publisher


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of hosts and repositories live and die here; power cuts are simulated, so nothing has to be on disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bench(tmp_path: Path) -> release_publisher.Publisher:
    return release_publisher.Publisher(tmp_path)


@pytest.fixture
def url(bench: release_publisher.Publisher) -> Iterator[str]:
    """Any static web server will do: the standard library's."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(bench.served))
    )  # fmt: skip
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()

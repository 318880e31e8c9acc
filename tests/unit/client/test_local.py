from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.client import local
from agentina.system import paths, services, users
from tests.fakes import deadlines

Listen = Callable[[bytes], list[bytes]]


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    found = paths.Layout(tmp_path).instance("default")
    found.socket.parent.mkdir(parents=True)
    return found


@pytest.fixture
def listen(instance: paths.InstancePaths) -> Iterator[Listen]:
    """A daemon that answers one connection with the given bytes; what it was asked is collected."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(instance.socket))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(reply: bytes) -> list[bytes]:
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.makefile("rb").readline())
                connection.sendall(reply)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return asked

    yield start
    for thread in threads:
        thread.join(deadlines.HANG)
    listener.close()


def test_status_is_asked_and_returned(instance: paths.InstancePaths, listen: Listen) -> None:
    asked = listen(b'{"status": {"state": "online"}, "error": null}\n')
    assert local.ask(instance, "status") == {"state": "online"}
    assert json.loads(asked[0]) == {"verb": "status"}


def test_reason_travels(instance: paths.InstancePaths, listen: Listen) -> None:
    asked = listen(b'{"status": {}}\n')
    local.ask(instance, "drain", reason="kernel update")
    assert json.loads(asked[0]) == {"verb": "drain", "reason": "kernel update"}


def test_nobody_listens(instance: paths.InstancePaths) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        local.ask(instance, "status")
    assert caught.value.entry is errors.DAEMON_NOT_RUNNING


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", "DAEMON_NOT_RUNNING"),
        (b'{"status": {"state"', "ANSWER_UNREADABLE"),
        (b"nonsense\n", "ANSWER_UNREADABLE"),
        (b"[1]\n", "ANSWER_UNREADABLE"),
        (b'{"status": null}\n', "ANSWER_UNREADABLE"),
        (b"[" * 100_000 + b"\n", "ANSWER_UNREADABLE"),
        (b'{"error": {"code": "FORBIDDEN", "context": {"needed": "owner", "role": "other"}}}\n', "FORBIDDEN"),
        (b'{"error": {"error": {"code": "FORBIDDEN", "context": {}}}}\n', "FORBIDDEN"),
    ],
)
def test_bad_answers_become_errors(instance: paths.InstancePaths, listen: Listen, reply: bytes, code: str) -> None:
    listen(reply)
    with pytest.raises(errors.AgentinaError) as caught:
        local.ask(instance, "status")
    assert caught.value.code == code


def test_a_daemon_that_hangs_is_given_up(instance: paths.InstancePaths) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(instance.socket))
        listener.listen()
        with pytest.raises(errors.AgentinaError) as caught:
            local.ask(instance, "status", timeout_seconds=0.1)
    assert caught.value.entry is errors.DAEMON_NOT_RUNNING


@pytest.mark.parametrize(
    ("root", "name", "manager", "start"),
    [
        ("/", "default", "systemd", "systemctl start agentina@default.service"),
        ("/", "coder-2", "systemd", "systemctl start agentina@coder-2.service"),
        ("/", "coder-2", "none", "agentina daemon --instance coder-2"),
        ("/srv/a b", "default", "systemd", "agentina daemon --root '/srv/a b'"),
    ],
)
def test_remedy_is_the_command_that_starts_this_daemon(  # noqa: PLR0917 - the table's columns
    monkeypatch: pytest.MonkeyPatch, root: str, name: str, manager: str, start: str
) -> None:
    monkeypatch.setattr(services, "runs_here", lambda: manager == "systemd")
    remedy = local._not_running(paths.Layout(Path(root)).instance(name)).remedy
    assert f"`{start}`" in remedy
    assert ("systemctl" in remedy) == start.startswith("systemctl")


def test_refusal_names_who_asked_as_this_side_knows_it(instance: paths.InstancePaths, listen: Listen) -> None:
    listen(
        b'{"error": {"code": "LOCAL_FORBIDDEN", "context": {"user": "nobody", "verb": "drain", "group": "agentina"}}}\n'
    )
    with pytest.raises(errors.AgentinaError) as caught:
        local.ask(instance, "drain")
    assert caught.value.entry is errors.LOCAL_FORBIDDEN
    assert f"({users.name_of(os.geteuid())})" in caught.value.message

"""The control plane as a real process: killed, stopped, out of room."""

from __future__ import annotations

import functools
import http.client
import json
import os
import random
import resource
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.protocol.states import State
from tests.fakes import deadlines
from tests.integration.control import simulated


class Submitter(threading.Thread):
    """Submits jobs with idempotency keys for as long as it is let; keeps what was answered."""

    def __init__(self, server: simulated.Process, is_over: threading.Event) -> None:
        super().__init__()
        self.client = simulated.Operator(server.url, server.token)
        self.answered: list[str] = []
        self.is_over = is_over

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                self.answered.append(self.client.submit(key=f"key-{len(self.answered)}"))
            except (OSError, http.client.HTTPException):
                self.is_over.wait(0.01)


class Worker(threading.Thread):
    """An agent that finishes what it took, repeating each request until it is answered."""

    def __init__(self, agent: simulated.Agent, is_over: threading.Event) -> None:
        super().__init__()
        self.agent = agent
        self.is_over = is_over
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.is_over.is_set():
                self.work(self.again(lambda: self.agent.take(wait=0.2, slots=4)))
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self.failure = error

    def work(self, tasks: list[str]) -> None:
        for task in tasks:
            self.again(functools.partial(self.put_output, task))
        agent = self.agent
        reports = [
            report
            for task in tasks
            for report in (
                agent.fact(task, "accepted"),
                agent.fact(task, "running"),
                agent.finished(task, output_bytes=3),
            )
        ]
        if reports:
            self.again(lambda: agent.report(*reports))

    def put_output(self, task: str) -> None:
        try:
            self.agent.output(task, 0, b"abc")
        except errors.AgentinaError as error:
            # The piece before was stored and its answer lost.
            if (error.code, error.context["expected"]) != ("OFFSET_MISMATCH", 3):
                raise

    def again(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """Jobs are submitted and run while the server is killed again and again; whatever was answered must hold."""
    with simulated.process(tmp_path / "data", listen="127.0.0.1:0") as server:
        server.keep_address()
        operator = simulated.Operator(server.url, server.token)
        is_over = threading.Event()
        submitter = Submitter(server, is_over)
        worker = Worker(simulated.new_agent(server.url, operator), is_over)
        submitter.start()
        worker.start()
        chance = random.Random(7)
        for _ in range(6):
            time.sleep(chance.uniform(0.05, 0.4))
            server.kill()
            server.start()
        is_over.set()
        submitter.join(deadlines.HANG)
        worker.join(deadlines.HANG)
        assert worker.failure is None
        while tasks := worker.agent.take(slots=100):
            worker.work(tasks)

        operator.close()
        jobs = submitter.answered
        assert len(jobs) == len(set(jobs)) > 20
        for job in jobs:
            shown = operator.show(job)
            assert (shown["job"]["state"], shown["job"]["attempts"]) == ("succeeded", 1)
            assert [task["output_bytes"] for task in shown["tasks"]] == [3]
            assert [event["state"] for event in shown["events"]].count("succeeded") == 1
        database = sqlite3.connect(tmp_path / "data/control.db")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


def test_it_stops_soon_with_many_polls_open(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data") as server:
        operator = simulated.Operator(server.url, server.token)
        agents = [simulated.new_agent(server.url, operator) for _ in range(100)]
        follower = simulated.Operator(server.url, server.token)
        job = operator.submit(role="nobody")
        for agent in agents:
            body = msgspec.json.encode(agent.poll_message(wait=50))
            assert agent._connection is not None
            agent._connection.request("POST", "/v1/agent/poll", body, {"Authorization": agent.authorization})
        assert follower.raw("GET", f"/v1/jobs/{job}/events?after=0").read()
        assert follower._connection is not None
        path = f"/v1/jobs/{job}/events?after=99&wait=50"
        follower._connection.request("GET", path, headers={"Authorization": follower.authorization})
        metric = b"agent_polls_held 100.0"
        deadline = time.monotonic() + deadlines.HANG
        while metric not in operator.raw("GET", "/metrics").read() and time.monotonic() < deadline:
            time.sleep(0.01)

        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 25, "it waited for polls, which last 50 s"
        for client in (*agents, follower):
            assert client._connection is not None
            answer = client._connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "SHUTTING_DOWN")


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data"):
        command = [*simulated.command(tmp_path / "data", {})]
        second = subprocess.run(command, capture_output=True, text=True, timeout=deadlines.HANG, check=False)
        assert second.returncode != 0
        assert "STATE_CONFLICT" in second.stderr


def test_the_operator_token_is_announced_once_and_stored_hashed(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    with simulated.process(tmp_path / "data", token_file=str(token_file)) as server:
        token = server.token
        assert token.startswith("aop_")
        assert token_file.read_text().strip() == token
        assert token_file.stat().st_mode & 0o777 == 0o600
        server.stop()
        server.token = ""
        server.start()
        assert server.token == ""
        assert simulated.Operator(server.url, token).call("GET", "/v1/whoami")["role"] == "admin"
        server.stop()
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
            assert path.stat().st_mode & 0o077 == 0, path


def test_without_room_it_says_so_changes_nothing_and_recovers(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data") as server:
        operator = simulated.Operator(server.url, server.token)
        agent = simulated.new_agent(server.url, operator)
        kept = operator.submit()
        (task,) = agent.take()
        hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
        try:
            for call in (operator.submit, lambda: agent.run(task), lambda: agent.output(task, 0, b"x" * 9000)):
                with pytest.raises(errors.AgentinaError, match="STORAGE_FULL"):
                    call()
            assert operator.raw("GET", "/healthz").read() == b"ok\n"
            answer = operator.raw("GET", "/readyz")
            assert (answer.status, json.loads(answer.read())["error"]["code"]) == (507, "STORAGE_FULL")
            assert agent.heartbeat((task, State.ASSIGNED)).renewed == [task]
            assert operator.state(kept) == ("assigned", "assigned")
        finally:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert operator.raw("GET", "/readyz").read() == b"ready\n"
        agent.stream = "again"
        agent.run(task)
        assert operator.state(kept) == ("succeeded", "exit-zero")
        assert len(operator.call("GET", "/v1/jobs")["jobs"]) == 1
        assert server.stop() == 0


def test_systemd_is_told_when_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with simulated.process(tmp_path / "data") as server:
            assert listener.recv(100) == b"READY=1"
            server.stop()
            assert listener.recv(100) == b"STOPPING=1"


def test_tls_is_served_with_the_given_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    changes: dict[str, Any] = {"tls_certificate": str(certificate), "tls_key": str(key)}
    with simulated.process(tmp_path / "data", **changes) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=os.fspath(certificate))
        connection = http.client.HTTPSConnection(server.url.removeprefix("https://"), context=context)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        connection.close()

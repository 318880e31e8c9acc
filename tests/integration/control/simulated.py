"""A minimal agent and operator over real sockets, and a control plane as a real process."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agentina import errors
from agentina.protocol import jobs, licensing, signing, wire
from agentina.protocol.states import Reason, State
from tests.fakes import deadlines

_PROGRAM = """
import json, sys
from pathlib import Path
from agentina.control import app, config
data, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
dies_after = changes.pop("dies_after", "")
if dies_after:
    import importlib, os, signal
    module, _, name = dies_after.rpartition(".")
    module = importlib.import_module(module)
    before = getattr(module, name)
    def then_dies(*arguments):
        before(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, then_dies)
for name in ("token_file", "tls_certificate", "tls_key"):
    if name in changes:
        changes[name] = Path(changes[name])
def say(kind):
    return lambda text: print(kind, text, flush=True)
announce = app.Announcements(address=say("address"), operator_token=say("token"))
app.serve(config.Settings(data=data, **{"listen": "127.0.0.1:0", **changes}), announce)
"""


def command(data: Path, changes: dict[str, Any]) -> list[str]:
    """The command line of a control plane process."""
    return [sys.executable, "-c", _PROGRAM, str(data), json.dumps(changes)]


class Process:
    """A control plane process; ``kill`` is a real kill -9."""

    def __init__(self, data: Path, **changes: Any) -> None:
        self.data = data
        self.token = ""
        self._changes = changes
        self.start()

    def start(self, *, dies_after: str = "") -> None:
        """Start it; a kill -9 of itself comes when a function (its module and name) has done its work."""
        arguments = command(self.data, {**self._changes, "dies_after": dies_after})
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, value = line.strip().partition(" ")
            if kind == "token":
                self.token = value
            if kind == "address":
                self.url = value
                return
        raise AssertionError(f"control plane ended with {self.process.wait()}")

    def keep_address(self) -> None:
        """Listen on the same address after a restart."""
        self._changes["listen"] = self.url.removeprefix("http://")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.close()

    def close(self) -> int:
        code = self.process.wait(deadlines.HANG)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def process(data: Path, **changes: Any) -> Iterator[Process]:
    started = Process(data, **changes)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


#: Clients made since the start of a test; a fixture closes them.
opened: list[Client] = []


class Client:
    """Blocking JSON over one kept connection."""

    def __init__(self, url: str, authorization: str = "") -> None:
        self._address = urllib.parse.urlsplit(url).netloc
        self.authorization = authorization
        self._connection: http.client.HTTPConnection | None = None
        opened.append(self)

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._address, timeout=deadlines.HANG)
        if self.authorization:
            headers["Authorization"] = self.authorization
        self._connection.request(method, path, body, headers)
        return self._connection.getresponse()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        encoded = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        try:
            answer = self.raw(method, path, encoded, **headers)
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        document = (
            json.loads(content) if content and answer.getheader("content-type") == "application/json" else content
        )
        if answer.status >= 400:
            raise errors.from_wire(document, status=answer.status)
        return document

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Operator(Client):
    """The operator API."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, f"Bearer {token}")

    def mint(self, **changes: Any) -> str:
        return str(self.call("POST", "/v1/tokens", changes)["tokens"][0]["token"])

    def submit(self, *, organization: str = "default", key: str | None = None, **changes: Any) -> str:
        document = {"name": "test", "payload": {"argv": ["true"]}, **changes}
        headers = {} if key is None else {"Idempotency-Key": key}
        return str(self.call("POST", f"/v1/jobs?organization={organization}", document, **headers)["id"])

    def submit_all(self, *documents: dict[str, Any], keys: tuple[str | None, ...] = ()) -> list[dict[str, Any]]:
        """Submit jobs together; each document is completed to a whole one."""
        whole = [{"name": "test", "payload": {"argv": ["true"]}, **document} for document in documents]
        keyed = itertools.zip_longest(whole, keys)
        batch = {"jobs": [{"job": job, "idempotency_key": key} for job, key in keyed]}
        return list(self.call("POST", "/v1/job-batches", batch)["jobs"])

    def show(self, job: str) -> Any:
        return self.call("GET", f"/v1/jobs/{job}")

    def state(self, job: str) -> tuple[str, str]:
        shown = self.show(job)["job"]
        return shown["state"], shown["reason"]

    def until(self, job: str, state: str) -> Any:
        deadline = time.monotonic() + deadlines.HANG
        after = 0
        while time.monotonic() < deadline:
            if (shown := self.show(job))["job"]["state"] == state:
                return shown
            events = self.call("GET", f"/v1/jobs/{job}/events?after={after}&wait=1")
            after = max((event["number"] for event in events["events"]), default=after)
        raise AssertionError(f"{job} is {self.state(job)}, not {state}")


class Agent(Client):
    """An agent that speaks the protocol and runs nothing."""

    def __init__(self, url: str, *, key: signing.SigningKey | None = None, instance: str = "default") -> None:
        super().__init__(url)
        self.key = key or signing.SigningKey.generate()
        self.instance = instance
        self.session = 0
        self.poll_number = 0
        self.acknowledged = 0
        self.stream = os.urandom(4).hex()
        self.numbers = itertools.count(1)

    def activation(self, token: str, **changes: Any) -> licensing.Activate:
        return licensing.Activate(
            token=token, public_key=self.key.public.key, proof=self.key.sign("activation", token.encode()),
            hostname=f"host-{self.key.public.id[:6]}", instance=self.instance, **changes,
        )  # fmt: skip

    def activate(self, token: str, **changes: Any) -> licensing.Activated:
        answer = self.call("POST", "/v1/activate", self.activation(token, **changes))
        self.activated = msgspec.convert(answer, licensing.Activated)
        self.authenticate()
        return self.activated

    def authenticate(self, *, now_ms: int | None = None) -> None:
        self.authorization = signing.make_assertion(
            self.key, agent_id=self.activated.agent_id, audience=self.activated.control_plane_id,
            now_ms=self.activated.server_time_ms if now_ms is None else now_ms,
        )  # fmt: skip

    def open(self, *held: tuple[str, State], **changes: Any) -> wire.SessionOpened:
        message = wire.SessionOpen(
            protocol=1, stream=self.stream, max_concurrent_tasks=8,
            tasks=[wire.Held(task_id=task, state=state) for task, state in held],
            **{"version": "1", "boot_id": "boot", "runners": ["command"], **changes},
        )  # fmt: skip
        opened = msgspec.convert(self.call("POST", "/v1/agent/session", message), wire.SessionOpened)
        self.session, self.poll_number, self.acknowledged = opened.session, 0, 0
        return opened

    def poll_message(
        self, *, slots: int = 8, wait: float = 0, memory: int = 64 << 30, gateway: jobs.GatewayState = ""
    ) -> wire.Poll:
        self.poll_number += 1
        return wire.Poll(
            session=self.session, number=self.poll_number, acknowledged=self.acknowledged, slots=slots,
            memory_bytes=memory, wait_seconds=wait, gateway=gateway,
        )  # fmt: skip

    def poll(self, *, acknowledge: bool = True, **changes: Any) -> wire.PollAnswer:
        answer = msgspec.convert(self.call("POST", "/v1/agent/poll", self.poll_message(**changes)), wire.PollAnswer)
        if acknowledge:
            self.acknowledged = answer.number
        return answer

    def assignments(self, answer: wire.PollAnswer) -> list[wire.Assignment]:
        keys = {key.id: key for key in self.activated.keys}
        return [signing.verify_struct(signed, "assignment", keys, wire.Assignment) for signed in answer.assignments]

    def take(self, **changes: Any) -> list[str]:
        return [assignment.task_id for assignment in self.assignments(self.poll(**changes))]

    def heartbeat(self, *held: tuple[str, State], **changes: Any) -> wire.HeartbeatAnswer:
        tasks = [wire.Held(task_id=task, state=state) for task, state in held]
        message = wire.Heartbeat(session=self.session, tasks=tasks, **changes)
        return msgspec.convert(self.call("POST", "/v1/agent/heartbeat", message), wire.HeartbeatAnswer)

    def fact(self, task: str, kind: Any, **changes: Any) -> wire.Report:
        return wire.Report(number=next(self.numbers), at_ms=0, task_id=task, kind=kind, **changes)

    def finished(
        self, task: str, state: State = State.SUCCEEDED, reason: Reason = Reason.EXIT_ZERO, **changes: Any
    ) -> wire.Report:
        return self.fact(task, "finished", outcome=wire.Outcome(state=state, reason=reason, **changes))

    def report(self, *reports: wire.Report) -> wire.ReportsApplied:
        message = wire.Reports(session=self.session, stream=self.stream, reports=list(reports))
        return msgspec.convert(self.call("POST", "/v1/agent/reports", message), wire.ReportsApplied)

    def run(
        self, task: str, state: State = State.SUCCEEDED, reason: Reason = Reason.EXIT_ZERO, **changes: Any
    ) -> wire.ReportsApplied:
        return self.report(
            self.fact(task, "accepted"), self.fact(task, "running", pid=42), self.fact(task, "finishing"),
            self.finished(task, state, reason, **changes),
        )  # fmt: skip

    def output(self, task: str, offset: int, piece: bytes) -> Any:
        return self.call("PUT", f"/v1/agent/tasks/{task}/output?session={self.session}&offset={offset}", piece)


def new_agent(url: str, operator: Operator, **changes: Any) -> Agent:
    """An activated agent with an open session."""
    agent = Agent(url)
    agent.activate(operator.mint(), **changes)
    agent.open()
    return agent

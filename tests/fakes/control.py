"""A control plane in memory that speaks the agent protocol on a real socket, with faults on request.

It keeps the rules of docs/reference/protocol.md that a host depends on: session fencing, polls resent until
acknowledged, reports applied once in order, output at offsets, artifacts verified by hash, ``forget`` when complete.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import secrets
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import h11
import msgspec

from agentina import errors
from agentina.host.instance import config, identity
from agentina.protocol import budgets, jobs, licensing, signing, states, wire
from agentina.protocol.states import FINAL, Reason, State
from agentina.system import paths
from tests.fakes import deadlines

AGENT = "3c6f4f0e-0000-4000-8000-000000000001"
CONTROL = "control-plane-1"


@dataclasses.dataclass
class Task:
    """A task as the control plane knows it."""

    id: str
    job: jobs.JobSpec
    state: State = State.ASSIGNED
    poll: int = 0
    taken: bool = False
    host_ended: bool = False
    outcome: wire.Outcome | None = None
    output: bytearray = dataclasses.field(default_factory=bytearray)
    artifacts: dict[str, tuple[wire.ArtifactInfo, bytearray]] = dataclasses.field(default_factory=dict)
    kinds: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    pids: list[int] = dataclasses.field(default_factory=list)
    stop: wire.StopTask | None = None
    lease_until: float = 0.0
    #: What it goes on from.
    origin: wire.Origin | None = None

    @property
    def complete(self) -> bool:
        return self.outcome is not None and len(self.output) >= self.outcome.output_bytes


@dataclasses.dataclass
class Fault:
    """What happens to the next ``times`` requests whose path contains ``path``."""

    #: ``drop`` (applied, answer lost), ``refuse`` (connection closed unread), ``garbage``, ``truncate``, ``slow``,
    #: or an HTTP status.
    kind: str | int
    path: str = ""
    times: int = 1
    retry_after: int | None = None
    seconds: float = 0.2


class FakeControl:
    """Start with ``async with``; look at its attributes."""

    def __init__(self) -> None:
        self.key = signing.SigningKey.generate()
        self.agent_key = signing.SigningKey.generate()
        self.tasks: dict[str, Task] = {}
        self.queue: list[Task] = []
        #: Assignments cross the poll that withdraws the offer which they are for.
        self.crosses = False
        self.session = 0
        self.applied: dict[str, int] = {}
        self.reports: list[wire.Report] = []
        self.sessions: list[wire.SessionOpen] = []
        self.heartbeats: list[wire.Heartbeat] = []
        self.polls: list[wire.Poll] = []
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.directives = wire.Directives(heartbeat_seconds=1.0, lease_seconds=60.0)
        self.answers: list[wire.Answer] = []
        self.refusal: errors.AgentinaError | None = None
        #: Milliseconds its clock is ahead.
        self.skew_ms = 0
        #: Changes an envelope before it is sent.
        self.tamper: Callable[[signing.Signed], signing.Signed] = lambda signed: signed
        self.unknown: set[str] = set()
        #: What hosts asked about budgets of the day, and what they are answered: that there are none.
        self.asked: list[budgets.Ask] = []
        self.shares: Callable[[budgets.Ask], budgets.Answer] = lambda asked: budgets.Answer(day=asked.day)
        self._changed = asyncio.Event()
        #: Part of every id: a daemon ends what a lost task left by the id, on the whole machine.
        self._ours = secrets.token_hex(4)
        self._numbers = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self.port = 0

    # --- what tests do -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def go_away(self) -> None:
        """Close the socket and every connection, as a killed process does."""
        if self._server is not None:
            self._server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def anomalies(self) -> list[wire.Anomaly]:
        return [report.anomaly for report in self.reports if report.anomaly is not None]

    def submit(self, script: str = "true", **fields: Any) -> Task:
        """Queue a job and return the task it will become."""
        self._numbers += 1
        document = {
            "name": f"job {self._numbers}",
            "payload": {"script": script},
            "resources": {"profile": "lightweight", "memory": 64 << 20},
            **fields,
        }
        task = Task(f"job_{self._ours}{self._numbers:08d}.1", jobs.parse_job(document))
        self.tasks[task.id] = task
        self.queue.append(task)
        self.wake()
        return task

    def go_on(self, task: Task) -> Task:
        """The next task of a job, which goes on from the newest checkpoint of ``task``."""
        names = [name for name, (info, _) in task.artifacts.items() if info.kind == "checkpoint"]
        job, _, number = task.id.rpartition(".")
        following = Task(f"{job}.{int(number) + 1}", task.job)
        following.origin = wire.Origin(task_id=task.id, artifact=task.artifacts[max(names)][0])
        self.tasks[following.id] = following
        self.queue.append(following)
        self.wake()
        return following

    def cancel(self, task: Task, detail: str = "canceled by a test") -> None:
        task.stop = wire.StopTask(task_id=task.id, reason=Reason.CANCELED_BY_OPERATOR, detail=detail)
        self.wake()

    def answer(self, task: Task, report: str, text: str) -> None:
        """What an operator says to a task about something it reported."""
        number = len(self.answers) + 1
        self.answers.append(wire.Answer(number=number, task_id=task.id, report=report, anomaly="ano_1", text=text))
        self.directives = msgspec.structs.replace(self.directives, answers=number)
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool], seconds: float = deadlines.HANG) -> None:
        """Wait until something holds that follows from requests."""
        async with asyncio.timeout(seconds):
            while not condition():
                try:
                    async with asyncio.timeout(0.05):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    async def until_ended(self, *tasks: Task, seconds: float = deadlines.HANG) -> None:
        await self.until(lambda: all(task.outcome is not None for task in tasks), seconds)

    def install(self, root: Path, name: str = "default", **settings: Any) -> paths.InstancePaths:
        """Make the files of an activated instance."""
        instance = paths.Layout(root).instance(name)
        fields = {"disk_reserve": 0, "memory_reserve": 0, "max_concurrent_tasks": 4, "max_memory_pressure": 100.0,
                  "max_io_pressure": 100.0, **settings}  # fmt: skip
        config.save(instance, config.HostConfig(control_plane=self.url, **fields))
        who = identity.Identity(
            seed=base64.b64encode(self.agent_key.seed).decode(),
            agent_id=AGENT,
            organization="default",
            control_plane_id=CONTROL,
            trusted=[self.key.public],
        )
        identity.save(instance, who)
        identity.save_license(instance, self.license())
        return instance

    def license(self, **changes: Any) -> signing.Signed:
        fields = {
            "agent_id": AGENT, "organization": "default", "plan": "free", "max_agents": 5,
            "max_concurrent_tasks_per_agent": 64, "channel": "stable", "offline_grace_hours": 24.0,
            "issued_ms": int(time.time() * 1000), "expires_ms": int(time.time() * 1000) + 86_400_000, **changes,
        }  # fmt: skip
        return self.key.sign_struct("license", licensing.License(**fields))

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        self._connections.add(current)
        http = h11.Connection(our_role=h11.SERVER)
        try:
            while await self._serve_one(http, reader, writer):
                http.start_next_cycle()
        except (ConnectionError, asyncio.CancelledError, h11.RemoteProtocolError):
            pass
        finally:
            self._connections.discard(current)
            writer.close()

    async def _serve_one(
        self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        request: h11.Request | None = None
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        path = request.target.decode()
        self.requests.append(path)
        fault = self._take_fault(path)
        if fault is not None and fault.kind == "refuse":
            return False
        status, content = 200, b""
        headers = dict(request.headers)
        if fault is not None and isinstance(fault.kind, int):
            status, content = fault.kind, b"<html>not me</html>"
        else:
            try:
                content = msgspec.json.encode(await self._dispatch(path, bytes(body), headers))
            except errors.AgentinaError as error:
                status, content = error.entry.status, msgspec.json.encode(errors.to_wire(error))
            self.wake()
        return await self._answer(http, writer, fault, status=status, content=content)

    async def _answer(
        self, http: h11.Connection, writer: asyncio.StreamWriter, fault: Fault | None, *, status: int, content: bytes
    ) -> bool:
        if fault is not None and fault.kind == "drop":
            return False
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        if fault is not None and fault.kind == "garbage":
            content = b"\x00\xffnot json" * 3
        headers = [("Content-Length", str(len(content))), ("Agentina-Time", str(self.now_ms()))]
        if fault is not None and fault.retry_after is not None:
            headers.append(("Retry-After", str(fault.retry_after)))
        data = http.send(h11.Response(status_code=status, headers=headers)) or b""
        if fault is not None and fault.kind == "truncate":
            writer.write(data + content[: len(content) // 2])
            await writer.drain()
            return False
        data += http.send(h11.Data(data=content)) or b""
        data += http.send(h11.EndOfMessage()) or b""
        writer.write(data)
        await writer.drain()
        return http.our_state is h11.DONE

    def _take_fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.path in path:
                fault.times -= 1
                return fault
        return None

    def now_ms(self) -> int:
        return int(time.time() * 1000) + self.skew_ms

    # --- the protocol ------------------------------------------------------------------------------------------------

    async def _dispatch(self, target: str, body: bytes, headers: dict[bytes, bytes]) -> msgspec.Struct | msgspec.Raw:
        self._authenticate(headers)
        if self.refusal is not None:
            raise self.refusal
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        parts = url.path.removeprefix("/v1/agent/").split("/")
        if parts == ["session"]:
            return self._open(msgspec.json.decode(body, type=wire.SessionOpen))
        if parts == ["heartbeat"]:
            return self._heartbeat(msgspec.json.decode(body, type=wire.Heartbeat))
        if parts == ["poll"]:
            return await self._poll(msgspec.json.decode(body, type=wire.Poll))
        if parts == ["reports"]:
            return self._reports(msgspec.json.decode(body, type=wire.Reports))
        if parts == ["budgets"]:
            asked = msgspec.json.decode(body, type=budgets.Ask)
            self._check(asked.session)
            self.asked.append(asked)
            return self.shares(asked)
        assert parts[0] == "tasks", target
        return self._upload(parts, query, body)

    def _upload(self, parts: list[str], query: dict[str, str], body: bytes) -> msgspec.Struct | msgspec.Raw:
        task = self.tasks.get(parts[1])
        if task is None or task.id in self.unknown:
            raise errors.TASK_UNKNOWN(task=parts[1])
        if "session" in query:
            self._check(int(query["session"]))
        if parts[2] == "output":
            return self._piece(task.output, int(query["offset"]), body)
        if parts[2] == "checkpoint":
            at = int(query["offset"])
            return msgspec.Raw(bytes(self.tasks[query["of"]].artifacts[query["name"]][1][at : at + wire.MAX_PIECE]))
        if len(parts) == 3:
            begin = msgspec.json.decode(body, type=wire.ArtifactBegin)
            self._check(begin.session)
            _, content = task.artifacts.setdefault(begin.artifact.name, (begin.artifact, bytearray()))
            return wire.PieceStored(offset=len(content), complete=_is_whole(begin.artifact, content))
        info, content = task.artifacts[urllib.parse.unquote("/".join(parts[3:]))]
        stored = self._piece(content, int(query["offset"]), body)
        if len(content) == info.size and not _is_whole(info, content):
            content.clear()
            raise errors.ARTIFACT_CORRUPT(name=info.name, found="x", expected=info.sha256)
        return wire.PieceStored(offset=stored.offset, complete=_is_whole(info, content))

    def _authenticate(self, headers: dict[bytes, bytes]) -> None:
        signed, assertion = signing.read_assertion(headers.get(b"authorization", b"").decode())
        signing.check_assertion(signed, assertion, key=self.agent_key.public, audience=CONTROL, now_ms=self.now_ms())

    def _check(self, session: int) -> None:
        if session != self.session:
            raise errors.SESSION_SUPERSEDED(session=session, current=self.session)

    def _piece(self, content: bytearray, offset: int, body: bytes) -> wire.PieceStored:
        assert len(body) <= wire.MAX_PIECE
        if offset != len(content):
            raise errors.OFFSET_MISMATCH(expected=len(content), found=offset)
        content += body
        return wire.PieceStored(offset=len(content))

    def _open(self, message: wire.SessionOpen) -> wire.SessionOpened:
        self.sessions.append(message)
        self.session += 1
        listed = {held.task_id: held for held in message.tasks}
        for task in self.tasks.values():
            if task in self.queue or task.state in FINAL or task.id in listed:
                continue
            if task.state is State.ASSIGNED:
                task.poll, task.taken = 0, False
                self.queue.append(task)
            else:
                task.state = State.LOST
                task.outcome = wire.Outcome(state=State.LOST, reason=Reason.RECORD_DAMAGED)
        stop, forget = self._orders(message.tasks)
        for task_id in listed:
            if task_id in self.tasks:
                self.tasks[task_id].taken = True
        return wire.SessionOpened(
            session=self.session, server_time_ms=self.now_ms(), applied=self.applied.get(message.stream, 0),
            stop=stop, forget=forget, directives=self.directives,
        )  # fmt: skip

    def _orders(self, listed: list[wire.Held]) -> tuple[list[wire.StopTask], list[str]]:
        stop, forget = [], []
        for held in listed:
            task = self.tasks.get(held.task_id)
            if task is None or task.id in self.unknown:
                order = wire.StopTask(task_id=held.task_id, reason=Reason.RECORD_DAMAGED)
                (forget.append(held.task_id) if held.state in FINAL else stop.append(order))
            elif task.host_ended and task.complete and held.state in FINAL:
                forget.append(task.id)
            elif task.stop is not None or task.state in FINAL:
                stop.append(task.stop or wire.StopTask(task_id=task.id, reason=Reason.LEASE_EXPIRED))
        return stop, forget

    def _heartbeat(self, message: wire.Heartbeat) -> wire.HeartbeatAnswer:
        self._check(message.session)
        self.heartbeats.append(message)
        stop, forget = self._orders(message.tasks)
        renewed = [
            h.task_id for h in message.tasks if h.task_id in self.tasks and self.tasks[h.task_id].state not in FINAL
        ]
        return wire.HeartbeatAnswer(
            server_time_ms=self.now_ms(), renewed=renewed, stop=stop, forget=forget, directives=self.directives,
            answers=[
                answer for held in message.tasks for answer in self.answers
                if held.task_id == answer.task_id and answer.number > held.answered
            ],
        )  # fmt: skip

    async def _poll(self, message: wire.Poll) -> wire.PollAnswer:
        self._check(message.session)
        self.polls.append(message)
        self.wake()
        deadline = asyncio.get_running_loop().time() + message.wait_seconds
        for task in self.tasks.values():
            if 0 < task.poll <= message.acknowledged:
                task.taken = True
        given, answers = 0, self.directives.answers
        while True:
            self._check(message.session)
            if message is not self.polls[-1]:
                return wire.PollAnswer(number=message.number, server_time_ms=self.now_ms(), directives=self.directives)
            while self.queue and (given < message.slots or self.crosses) and not self.directives.drain:
                task = self.queue.pop(0)
                task.state, task.poll, task.taken = State.ASSIGNED, message.number, False
                given += 1
            unsent = [
                task for task in self.tasks.values() if task.poll and not task.taken and task.state is State.ASSIGNED
            ]
            stops = [task.stop for task in self.tasks.values() if task.stop is not None and not task.host_ended]
            if unsent or stops or self.directives.answers > answers or asyncio.get_running_loop().time() >= deadline:
                for task in unsent:
                    task.poll = message.number
                return wire.PollAnswer(
                    number=message.number, server_time_ms=self.now_ms(), directives=self.directives, stop=stops,
                    assignments=[self.tamper(self.assign(task, message)) for task in unsent],
                )  # fmt: skip
            changed = self._changed
            try:
                async with asyncio.timeout(max(0.01, deadline - asyncio.get_running_loop().time())):
                    await changed.wait()
            except TimeoutError:
                continue

    def assign(self, task: Task, message: wire.Poll, **changes: Any) -> signing.Signed:
        fields = {
            "task_id": task.id, "job_id": task.id.split(".")[0], "epoch": int(task.id.split(".")[1]), "agent_id": AGENT,
            "session": message.session, "poll": message.number, "organization": "default",
            "issued_ms": self.now_ms(), "lease_seconds": self.directives.lease_seconds, "job": task.job,
            "origin": task.origin, **changes,
        }  # fmt: skip
        return self.key.sign_struct("assignment", wire.Assignment(**fields))

    def _reports(self, message: wire.Reports) -> wire.ReportsApplied:
        self._check(message.session)
        applied = self.applied.get(message.stream, 0)
        forget = []
        for report in message.reports:
            if report.number > applied:
                assert report.number == applied + 1, "a gap in the reports"
                applied = report.number
                self._apply(report)
            task = self.tasks.get(report.task_id)
            if report.kind in {"finished", "returned"} and (task is None or report.kind == "returned" or task.complete):
                forget.append(report.task_id)
        self.applied[message.stream] = applied
        return wire.ReportsApplied(applied=applied, forget=forget)

    def _apply(self, report: wire.Report) -> None:
        self.reports.append(report)
        task = self.tasks.get(report.task_id)
        if task is None:
            return
        if report.anomaly is not None:
            return
        if report.kind == "note":
            task.notes.append(report.detail)
            return
        task.kinds.append(report.kind)
        if report.pid is not None:
            task.pids.append(report.pid)
        if report.kind == "finished" and report.outcome is not None:
            task.host_ended = True
            task.outcome = task.outcome or report.outcome
            task.state = task.outcome.state
        elif report.kind == "returned":
            task.state, task.poll = State.QUEUED, 0
        else:
            after = {"accepted": State.PREPARING, "running": State.RUNNING, "finishing": State.FINISHING}.get(
                report.kind
            )
            if after is not None and (task.state is State.QUEUED or states.may_follow(task.state, after)):
                task.state = after


def _is_whole(info: wire.ArtifactInfo, content: bytearray) -> bool:
    return len(content) == info.size and hashlib.sha256(content).hexdigest() == info.sha256

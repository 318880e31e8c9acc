"""Rollouts over a thousand agents that speak the real protocol with a control plane process, which is killed, too."""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from agentina.system import tasks
from benchmarks import simulator
from tests.fakes import deadlines
from tests.integration.control import simulated

OLD, NEW = "1.0.0", "1.1.0"
#: Seconds between heartbeats, and those a task takes without and with a release that slows it down.
BEAT, QUICK, SLOW = 2.0, 0.3, 1.2
#: How many requests are opened or sent at once by hosts that begin.
AT_ONCE = 32


class Host(simulator.Agent):
    """An agent that obeys orders and runs tasks; what the new release does to it depends on its group."""

    def __init__(self, number: int, group: str, installed: asyncio.Event) -> None:
        super().__init__(number)
        self._installed = installed
        self.group = group
        self.version = OLD
        self.update: wire.UpdateReport | None = None
        self.acted: list[str] = []
        self.installs = 0
        self._url = ""
        self._numbers = itertools.count(1)

    async def begin(self, url: str, token: str) -> None:
        self._url = url
        self._connection = await self.activate(url, None, token)
        await self.beat()

    async def beat(self) -> wire.UpdateOrder | None:
        message = wire.Heartbeat(session=self._session, version=self.version, update=self.update)
        answer = await self._connection.send("/v1/agent/heartbeat", message)
        return msgspec.json.decode(answer, type=wire.HeartbeatAnswer).directives.update

    async def live(self) -> None:
        """Send heartbeats for ever, and do as told: once for each order."""
        while True:
            try:
                order = await self.beat()
            except OSError:
                await self._connect_again()
                continue
            if order is None or order.id in self.acted:
                await asyncio.sleep(BEAT * random.uniform(0.5, 1.0))
                continue
            self.acted.append(order.id)
            self._obey(order)

    async def _connect_again(self) -> None:
        """The control plane was killed; the session lives on in its database."""
        while True:
            try:
                self._connection = await simulator.Connection.open(self._url, None, self.assertion)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                return

    def _obey(self, order: wire.UpdateOrder) -> None:
        report = wire.UpdateReport(id=order.id, version=order.version, state="rolled-back", verdict="good")
        if order.action == "rollback":
            self.version = OLD
        elif self.group == "bad":
            report = msgspec.structs.replace(report, verdict="bad", reason="crashed")
            self.installs += 1
        else:
            report = msgspec.structs.replace(report, state="promoted")
            self.version = order.version
            self.installs += 1
            self._installed.set()
        self.update = report

    async def work(self) -> None:
        """Take one task after the other and report it, for ever."""
        poll = await simulator.Connection.open(self._url, None, self.assertion)
        reports = await simulator.Connection.open(self._url, None, self.assertion)
        while True:
            for task in self.take(await self.poll(poll, slots=1)):
                await reports.send(
                    "/v1/agent/reports", self.reports([self._fact(task, "accepted"), self._fact(task, "running")])
                )
                is_new = self.version == NEW
                await asyncio.sleep(SLOW if is_new and self.group == "slow" else QUICK)
                outcome = wire.Outcome(state=State.SUCCEEDED, reason=Reason.EXIT_ZERO)
                if is_new and self.group == "failing" and random.random() < 0.7:
                    outcome = wire.Outcome(state=State.FAILED, reason=Reason.EXIT_NONZERO)
                await reports.send("/v1/agent/reports", self.reports([self._fact(task, "finished", outcome=outcome)]))

    def _fact(self, task: str, kind: Any, **more: Any) -> wire.Report:
        return wire.Report(number=next(self._numbers), at_ms=0, task_id=task, kind=kind, **more)


class Fleet:
    """Hosts of one control plane process."""

    def __init__(self, server: simulated.Process) -> None:
        self.server = server
        self.operator = simulated.Operator(server.url, server.token)
        self.operator.call("PUT", "/v1/organizations/default", {"max_agents": 2000})
        self.hosts: list[Host] = []
        #: Set when a host has installed the new release.
        self.installed = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []

    async def add(self, **groups: int) -> None:
        """Activate so many hosts with a label ``group`` of each kind and keep them alive."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def begin(host: Host, token: str) -> None:
            async with gate:
                await host.begin(self.server.url, token)
            self.start(host.live())

        for group, count in groups.items():
            wanted = {"count": count, "labels": {"group": group, "zone": "ab"[len(group) % 2]}}
            tokens = [made["token"] for made in self.operator.call("POST", "/v1/tokens", wanted)["tokens"]]
            hosts = [Host(len(self.hosts) + number, group, self.installed) for number in range(count)]
            await asyncio.gather(*(begin(host, token) for host, token in zip(hosts, tokens, strict=True)))
            self.hosts += hosts

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.append(tasks.start(work, name="host"))

    async def close(self) -> None:
        for task in self._running:
            await tasks.cancel(task)

    def of(self, group: str) -> list[Host]:
        return [host for host in self.hosts if host.group == group]

    async def feed(self, group: str, waiting: int) -> None:
        """Keep so many jobs waiting for the hosts of a group, for ever."""
        client = simulated.Operator(self.server.url, self.server.token)
        for number in itertools.count():
            await asyncio.to_thread(client.submit, labels={"group": group}, retry={"max_attempts": 1})
            if number >= waiting:
                await asyncio.sleep(QUICK / waiting)

    def roll_out(self, group: str, **plan: Any) -> str:
        wanted = {"version": NEW, "select": [f"label.group={group}"], **plan}
        return str(self.operator.call("POST", "/v1/rollouts", wanted)["rollout"]["id"])

    async def ended(self, rollout: str) -> Any:
        """Follow a rollout to its end."""
        client, revision = simulated.Operator(self.server.url, self.server.token), 0
        while True:
            path = f"/v1/rollouts/{rollout}?revision={revision}&wait=10"
            shown = await asyncio.to_thread(client.call, "GET", path)
            if shown["rollout"]["state"] in {"completed", "rolled-back"}:
                return shown
            revision = shown["revision"]


@pytest.fixture
def descriptors() -> None:
    """Each host has a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture
async def fleet(tmp_path: Path, descriptors: None) -> AsyncIterator[Fleet]:
    # The control plane listens for 12 s after its start; a host is silent after 40 s.
    with simulated.process(tmp_path / "data", heartbeat_seconds=4.0, rollout_seconds=0.5) as server:
        server.keep_address()
        made = Fleet(server)
        yield made
        await made.close()


@pytest.mark.slow
async def test_a_thousand_agents(fleet: Fleet) -> None:
    await fleet.add(slow=150, failing=150, bad=300, good=400)
    for group in ("slow", "failing"):
        for host in fleet.of(group)[:10]:
            fleet.start(host.work())
        fleet.start(fleet.feed(group, 10))
    # What tasks came to before, to compare with.
    await asyncio.sleep(12 * QUICK)
    plan = {"canary": 3, "soak_seconds": 3600, "watch_seconds": 3600}
    rollouts = {
        "slow": fleet.roll_out("slow", **plan), "failing": fleet.roll_out("failing", **plan),
        "bad": fleet.roll_out("bad", **plan),
        "good": fleet.roll_out("good", canary=3, soak_seconds=1, batch_percent=34, watch_seconds=1),
    }  # fmt: skip
    ends = await asyncio.wait_for(asyncio.gather(*map(fleet.ended, rollouts.values())), 3 * deadlines.HANG)
    ended = {group: shown["rollout"] for group, shown in zip(rollouts, ends, strict=True)}
    assert {group: one["state"] for group, one in ended.items()} == {
        "slow": "rolled-back", "failing": "rolled-back", "bad": "rolled-back", "good": "completed",
    }  # fmt: skip
    assert ended["bad"]["gate"] == "rollbacks"
    assert ended["failing"]["gate"] == "failures"
    assert ended["slow"]["gate"] in {"duration", "throughput"}
    for group in ("bad", "failing", "slow"):
        assert sum(host.installs for host in fleet.of(group)) <= 3, "the canaries only"
        assert {host.version for host in fleet.of(group)} == {OLD}
    assert all((host.version, host.installs, len(host.acted)) == (NEW, 1, 1) for host in fleet.of("good"))


@pytest.mark.slow
async def test_a_killed_control_plane_gives_no_order_twice(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data", heartbeat_seconds=1.0, rollout_seconds=0.05) as server:
        server.keep_address()
        fleet = Fleet(server)
        await fleet.add(good=30)
        rollout = fleet.roll_out("good", canary=2, soak_seconds=0, batch_percent=25, watch_seconds=0)
        chance = random.Random(7)
        for _ in range(3):
            # Until something moves, and then any moment.
            await asyncio.wait_for(fleet.installed.wait(), deadlines.HANG)
            fleet.installed.clear()
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        fleet.operator.close()
        shown = await asyncio.wait_for(fleet.ended(rollout), deadlines.HANG)
        await fleet.close()
    assert shown["rollout"]["state"] == "completed"
    assert shown["rollout"]["agents"] == {"updated": 30}
    assert [host.acted for host in fleet.hosts] == [[f"{rollout}.1"]] * 30

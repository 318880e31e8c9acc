"""A gateway for one task on the test's event loop, with a provider behind it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agentina.gateway import (
    account,
    budgets,
    channel,
    days,
    egress,
    listener,
    models,
    record,
    rules,
    settings,
    streams,
    tokens,
    variables,
)
from agentina.protocol import budgets as protocol
from agentina.protocol import jobs
from agentina.system import clock
from tests.fakes import deadlines, model_provider

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
KEY = "sk-real-0123456789"
#: Tokens that the context of the model takes which has a price of its own here.
WINDOW = 5000


#: Seconds to the control plane's midnight when a gate opens.
HOUR = 3600.0


class Clock(clock.SystemClock):
    """Its boot clock can be set forward, and somebody can set its wall clock."""

    ahead = 0.0
    stepped_ms = 0

    def boot(self) -> float:
        return super().boot() + self.ahead

    def wall_ms(self) -> int:
        return super().wall_ms() + self.stepped_ms


class Told:
    """What the daemon was told."""

    def __init__(self) -> None:
        self.words: list[channel.Word] = []
        self.refused = asyncio.Event()
        self.carried = asyncio.Event()

    def take(self, word: channel.Word) -> None:
        self.words.append(word)
        if isinstance(word, channel.Refused):
            self.refused.set()
        if isinstance(word, channel.Carried):
            self.carried.set()


@dataclasses.dataclass
class Gate:
    directory: Path
    token: str
    account: account.Account
    told: Told
    provider: model_provider.ModelProvider
    clock: Clock
    days: days.Days
    #: Milliseconds from the clock since boot to the control plane's.
    ahead_ms: int

    def learn(
        self,
        *,
        organization: protocol.Share | None = None,
        agent: protocol.Whole | None = None,
        day: str = "",
        is_away: bool = False,
    ) -> None:
        """Hear of budgets of the day, as the process does; of today's unless another ``day`` is told."""
        known = days.Known(day=day or self.days.today, organization=organization, agent=agent)
        self.days.learn(known, ahead_ms=self.ahead_ms, is_away=is_away)
        self.account.wake()

    @property
    def socket(self) -> Path:
        return self.directory / variables.socket_name(self.account.task_id)

    async def open(self) -> streams.Server:
        reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=streams.PIECE)
        return streams.Server(reader, writer)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, and read all that comes until the end of the connection."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(deadlines.HANG):
            answer = await reader.read()
        writer.close()
        return answer

    async def ask(
        self,
        path: str,
        document: Any = None,
        *,
        method: str = "POST",
        token: str | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own, as a CLI makes it; raises ``Gone`` when the answer breaks off."""
        server = await self.open()
        try:
            content = body if body is not None else b"" if document is None else json.dumps(document).encode()
            headers = [(b"host", b"127.0.0.1"), (b"content-length", b"%d" % len(content))]
            headers.append((b"x-api-key", (self.token if token is None else token).encode()))
            await server.send_head(method, path, headers)
            if content:
                await server.send(content)
            await server.finish()
            head = await server.head(seconds=deadlines.HANG)
            answer = b"".join([piece async for piece in server.pieces(seconds=deadlines.HANG)])
            return head.status_code, {bytes(k).decode(): bytes(v).decode() for k, v in head.headers}, answer
        finally:
            server.close()

    async def message(self, **more: Any) -> tuple[int, dict[str, str], bytes]:
        """A call of a model by Anthropic's API."""
        return await self.ask("/anthropic/v1/messages?beta=true", message(**more))

    @property
    def totals(self) -> budgets.Totals:
        return self.account.ledger.totals

    def ends(self) -> list[str]:
        """How the calls ended, as the record says it."""
        lines = (self.directory / record.NAME).read_text().splitlines()
        entries = [json.loads(line[9:]) for line in lines]
        return [entry["end"] for entry in entries if entry["kind"] == "end"]

    async def wait_until_refused(self) -> None:
        await asyncio.wait_for(self.told.refused.wait(), deadlines.HANG)

    def refusals(self) -> list[tuple[str, str, str]]:
        return [(word.code, word.reason, word.host) for word in self.told.words if isinstance(word, channel.Refused)]


def message(**more: Any) -> dict[str, Any]:
    return {
        "model": "claude-haiku-4-5", "stream": True, "max_tokens": 1000,
        "messages": [{"role": "user", "content": "x" * 2000}], **more,
    }  # fmt: skip


@contextlib.asynccontextmanager
async def opened(
    tmp_path: Path,
    *,
    limits: jobs.Budget | None = None,
    scope: list[str] | None = None,
    policy: list[str] | None = None,
    networks: tuple[rules.Network, ...] = LOOPBACK,
    resolver: egress.Resolver = egress.resolve,
    stall_seconds: float = 20.0,
    keys: int = 1,
    url: str = "",
) -> AsyncIterator[Gate]:
    """A task's door, open."""
    directory = tmp_path / "task"
    directory.mkdir(exist_ok=True)
    token = tokens.make()
    told = Told()
    clocks = Clock()
    async with model_provider.running() as provider:
        loaded = load(tmp_path, url or provider.url, keys=keys)
        order = channel.Open(
            task_id="task_1", directory=str(directory), digest=tokens.digest(token), limits=limits or jobs.Budget()
        )
        grants = rules.Rules(scope=scope or [], policy=policy, networks=networks)
        serving = models.Models(loaded, clocks=clocks, stall_seconds=stall_seconds)
        shared = days.Days(now_ms=lambda: clocks.boot() * 1000)
        boot_ms = int(clocks.boot() * 1000)
        ahead_ms = protocol.next_day_ms(boot_ms) - int(HOUR * 1000) - boot_ms
        shared.learn(days.Known(day=protocol.day_of(boot_ms + ahead_ms)), ahead_ms=ahead_ms, is_away=False)
        written = record.Record(directory)
        task = account.Account(order, written=written, grants=grants, clocks=clocks, tell=told.take, shared=shared)
        door = listener.Listener(task, serving=serving, ways=egress.Egress(resolver))
        await door.open(channel.Door(directory=str(directory)))
        try:
            yield Gate(directory, token, task, told, provider, clocks, shared, ahead_ms)
        finally:
            await door.close()
            serving.close()


def load(tmp_path: Path, url: str, *, keys: int = 1, name: str = "gateway.yaml") -> settings.Loaded:
    """Settings with a provider of each kind at ``url``."""
    store = tmp_path / "credentials"
    store.mkdir(exist_ok=True)
    names = [f"key-{number}" for number in range(keys)]
    for number, key in enumerate(names):
        (store / key).write_text(f"{KEY}{number or ''}\n")
        (store / key).chmod(0o600)
    providers = [
        {"name": api, "api": api, "url": url, "credentials": names} for api in ("anthropic", "openai", "gemini")
    ]
    (tmp_path / name).write_text(
        json.dumps(
            {
                "providers": providers,
                "prices": {"gpt-test": {"input": 1, "output": 2, "context_window": WINDOW}},
                "networks": ["127.0.0.0/8"],
            }
        )
    )
    return settings.load(tmp_path / name)

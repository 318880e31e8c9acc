"""The gateway as a process of its own, and what a task finds behind the forwarder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.gateway import channel, days, forwarder, keeper, record, tokens, variables
from agentina.protocol import budgets as protocol_budgets
from agentina.protocol import jobs
from agentina.system import sockets
from tests.fakes import deadlines, model_provider, procfs
from tests.integration.gateway import gates

TOOL = """
import json, os, sys, urllib.request
body = json.dumps({"model": "claude-haiku-4-5", "stream": True, "max_tokens": 100}).encode()
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body)
request.add_header("x-api-key", os.environ["ANTHROPIC_API_KEY"])
sys.stdout.write(urllib.request.urlopen(request).read().decode())
sys.exit(7)
"""


#: A task's address comes from its name and is the machine's: no other run may have tasks of these names.
TASK_A, TASK_B = (f"task_{letter}_{secrets.token_hex(8)}" for letter in "ab")


async def end_group(process: asyncio.subprocess.Process) -> None:
    """End the forwarder that a command left, if it left one.

    It is nobody's child here, so its end cannot be awaited: the next command would find its address in use, and ask one
    that is dying.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    async with asyncio.timeout(deadlines.HANG):
        while any(is_listening(variables.address(name)) for name in (TASK_A, TASK_B)):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)


def is_listening(address: str) -> bool:
    """Whether a forwarder has an address; asked as the next one will."""
    try:
        socket.create_server((address, forwarder.PORT)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return True
    return False


def forwarding(directory: Path, name: str) -> list[str]:
    """What stands before a command of a task that has a way out in ``directory``."""
    place = directory / variables.socket_name(name)
    return [sys.executable, "-I", "-S", forwarder.__file__, str(place), variables.address(name), "--"]


class Host:
    """A keeper, a provider, and tasks."""

    def __init__(self, root: Path, provider: model_provider.ModelProvider) -> None:
        self.root = root
        self.provider = provider
        self.words: asyncio.Queue[channel.Word] = asyncio.Queue()
        self.wanted: asyncio.Queue[channel.Wanted] = asyncio.Queue()
        #: What the control plane says of the organization's budget of the day; None: there is none.
        self.share: protocol_budgets.Share | None = None
        gates.load(root, provider.url)
        self.keeper = keeper.Keeper(root / "gateway.yaml", hear=self.hear, idle_seconds=0)

    def hear(self, word: channel.Word) -> None:
        if isinstance(word, channel.Wanted):
            self.wanted.put_nowait(word)
            self.keeper.tell(channel.Learn(known=days.Known(day=word.want.day, organization=self.share)))
        else:
            self.words.put_nowait(word)

    async def open(
        self, name: str, *, most: int | None = None, has_door: bool = True, token: str = ""
    ) -> tuple[Path, str]:
        directory = self.root / name
        directory.mkdir(exist_ok=bool(token))
        token = token or tokens.make()
        await self.keeper.open(
            channel.Open(
                task_id=name,
                directory=str(directory),
                door=channel.Door(directory=str(directory)) if has_door else None,
                digest=tokens.digest(token),
                limits=jobs.Budget(tokens=most),
            )
        )
        return directory, token

    async def run(self, directory: Path, token: str, *command: str, name: str = "") -> tuple[int | None, str]:
        """Run a command as a task with a way out; its exit code and output."""
        name = name or directory.name
        argv = [*forwarding(directory, name), *command]
        process = await asyncio.create_subprocess_exec(
            *argv, env={"PATH": os.environ["PATH"], **variables.tell(name, token)}, start_new_session=True,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), deadlines.HANG)
        finally:
            await end_group(process)
        return process.returncode, output.decode()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with model_provider.running() as provider:
        made = Host(tmp_path, provider)
        yield made
        await made.keeper.stop()


async def test_a_tool_in_a_task_calls_a_model(host: Host) -> None:
    directory, token = await host.open(TASK_A)
    code, output = await host.run(directory, token, sys.executable, "-c", TOOL)
    assert code == 7
    assert "message_stop" in output
    word = await asyncio.wait_for(host.words.get(), deadlines.HANG)
    fresh, cached, used = host.provider.billed
    assert isinstance(word, channel.Used)
    (row,) = word.usage
    assert (row.input, row.cached, row.output, row.calls) == (fresh, cached, used, 1)
    assert host.provider.asked[0].headers["x-api-key"] == gates.KEY


async def test_what_was_carried_is_in_the_record_when_the_task_was_let_go(host: Host) -> None:
    directory, token = await host.open(TASK_A)
    _, output = await host.run(directory, token, sys.executable, "-c", TOOL)
    host.keeper.close(TASK_A)
    await asyncio.wait_for(host.keeper.closed(TASK_A), deadlines.HANG)
    story = record.read(directory)
    assert story is not None
    assert story.carried is not None
    assert story.carried.received > len(output)
    assert story.carried.sent > len(token)
    await host.open(TASK_A, token=token)
    await host.run(directory, token, sys.executable, "-c", TOOL)
    host.keeper.close(TASK_A)
    await host.keeper.closed(TASK_A)
    again = record.read(directory)
    assert again is not None
    assert again.carried is not None
    assert again.carried.sent == 2 * story.carried.sent
    # How an answer is cut into chunks goes by what came together.
    assert again.carried.received > story.carried.received + len(output)


async def test_nobody_waits_for_a_killed_gateway_to_let_go(host: Host) -> None:
    await host.open(TASK_A)
    running = host.keeper._running
    assert running is not None
    os.kill(host.keeper.pid, signal.SIGKILL)
    host.keeper.close(TASK_A)
    await asyncio.wait_for(host.keeper.closed(TASK_A), deadlines.HANG)
    await asyncio.wait_for(host.keeper.closed(TASK_B), deadlines.HANG)
    await asyncio.wait_for(running, deadlines.HANG)


async def test_who_stops_it_waits_for_a_process_that_ends_already(host: Host) -> None:
    await host.open(TASK_A)
    pid = host.keeper.pid
    os.kill(pid, signal.SIGSTOP)
    host.keeper.close(TASK_A)
    async with asyncio.timeout(deadlines.HANG):
        while host.keeper.pid:  # noqa: ASYNC110 - it is told to end in its own time
            await asyncio.sleep(0.005)
        stopping = asyncio.ensure_future(host.keeper.stop())  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        await stopping
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_key_is_not_to_be_found_from_a_task(host: Host) -> None:
    directory, token = await host.open(TASK_A)
    search = f"cd /proc/{host.keeper.pid}; cat environ mem maps cmdline fd/* 2>/dev/null; env; echo done"
    if os.getuid() == 0:
        # root may look anywhere: what is not in the environment and the arguments is shown all the same
        search = f"cat /proc/{host.keeper.pid}/environ /proc/{host.keeper.pid}/cmdline; env; echo done"
    _, output = await host.run(directory, token, "/bin/sh", "-c", search)
    assert "done" in output
    assert gates.KEY not in output


async def test_another_tasks_token_is_worth_nothing(host: Host) -> None:
    directory, _ = await host.open(TASK_A)
    _, other = await host.open(TASK_B)
    code, _ = await host.run(directory, other, sys.executable, "-c", TOOL)
    assert code == 1
    assert not host.provider.asked
    word = await asyncio.wait_for(host.words.get(), deadlines.HANG)
    assert isinstance(word, channel.Refused)
    assert (word.task_id, word.code) == (TASK_A, "GATEWAY_TOKEN_REFUSED")


async def test_a_killed_gateway_is_replaced_and_its_open_call_charged(host: Host) -> None:
    directory, token = await host.open(TASK_A, most=100_000)
    host.provider.scenario = "held"
    running = asyncio.get_running_loop().create_task(host.run(directory, token, sys.executable, "-c", TOOL))
    await asyncio.wait_for(host.provider.holding.wait(), deadlines.HANG)
    before = host.keeper.pid
    os.kill(before, signal.SIGKILL)
    assert (await running)[0] == 1
    host.provider.scenario = "text"
    # The forwarder waits until the next gateway listens.
    code, _ = await host.run(directory, token, sys.executable, "-c", TOOL)
    assert code == 7
    assert host.keeper.pid not in {0, before}
    story = record.read(directory)
    assert story is not None
    assert (story.totals.calls, story.totals.estimated, story.open) == (2, 1, {})


async def test_a_budget_can_be_raised_and_the_last_task_ends_the_process(host: Host) -> None:
    directory, token = await host.open(TASK_A, most=1)
    assert (await host.run(directory, token, sys.executable, "-c", TOOL))[0] == 1
    host.keeper.tell(channel.Raise(task_id=TASK_A, limits=jobs.Budget(tokens=10_000)))
    assert (await host.run(directory, token, sys.executable, "-c", TOOL))[0] == 7
    running = host.keeper._running
    assert running is not None
    host.keeper.close(TASK_A)
    await asyncio.wait_for(running, deadlines.HANG)
    assert host.keeper.pid == 0
    assert not (directory / variables.socket_name(TASK_A)).exists()
    await host.open(TASK_B)
    assert host.keeper.pid


async def test_a_task_is_let_in_where_it_is_found_to_run(host: Host) -> None:
    """A slot has a place for the socket only after its start; the forwarder waits for that."""
    directory, token = await host.open(TASK_A, has_door=False)
    place = directory / "orders"
    place.mkdir()
    command = [sys.executable, "-c", TOOL]
    door = channel.Door(directory=str(place), is_shared=True)
    asyncio.get_running_loop().call_later(0.3, host.keeper.listen, TASK_A, door)
    assert (await host.run(place, token, *command, name=TASK_A))[0] == 7
    door_file = place / variables.socket_name(TASK_A)
    assert door_file.stat().st_mode & 0o777 == 0o666
    assert sorted(path.name for path in place.iterdir()) == [door_file.name]
    # The next process finds it by itself; what its predecessor left is replaced.
    os.kill(host.keeper.pid, signal.SIGKILL)
    assert (await host.run(place, token, *command, name=TASK_A))[0] == 7
    told = record.read(directory)
    assert told is not None
    assert told.totals.calls == 2


async def test_a_door_that_is_gone_hurts_nobody(host: Host) -> None:
    """A task ended, and another has its place, before the gateway came to hear where the first was."""
    place = host.root / "orders"
    place.mkdir()
    await host.open(TASK_A, has_door=False)
    _, token = await host.open(TASK_B, has_door=False)
    door = channel.Door(directory=str(place), is_shared=True)
    host.keeper.listen(TASK_B, door)
    host.keeper.listen(TASK_A, door)
    host.keeper.close(TASK_A)
    host.keeper.listen(TASK_A, channel.Door(directory=str(host.root / "nowhere")))
    assert (await host.run(place, token, sys.executable, "-c", TOOL, name=TASK_B))[0] == 7
    assert [path.name for path in place.iterdir()] == [variables.socket_name(TASK_B)]


async def test_a_share_that_is_not_given_is_asked_for_ever_less_often(host: Host) -> None:
    all_of_it, nothing = protocol_budgets.Bounds(tokens=1_000_000), protocol_budgets.Bounds(tokens=0)
    host.share = protocol_budgets.Share(limit=all_of_it, cap=nothing, left=all_of_it)
    directory, token = await host.open(TASK_A)
    running = asyncio.get_running_loop().create_task(host.run(directory, token, sys.executable, "-c", TOOL))
    while (await asyncio.wait_for(host.wanted.get(), deadlines.HANG)).want.want.tokens == 0:
        pass
    began = time.monotonic()
    for _ in range(5):
        await asyncio.wait_for(host.wanted.get(), deadlines.HANG)
    # At first 50 ms or more apart, then twice as far each time.
    assert time.monotonic() - began > 0.05 * (1 + 2 + 4 + 8 + 16) / 2
    host.share = protocol_budgets.Share(limit=all_of_it, cap=all_of_it, left=all_of_it)
    assert (await running)[0] == 7


async def test_settings_that_cannot_be_read_fail_the_task_with_the_reason(host: Host) -> None:
    (host.root / "gateway.yaml").write_text('{"provider": []}')
    with pytest.raises(errors.AgentinaError) as caught:
        await host.open(TASK_A)
    assert caught.value.code == "GATEWAY_UNUSABLE"
    assert "did you mean 'providers'" in caught.value.message
    gates.load(host.root, host.provider.url)
    await host.open(TASK_B)


async def test_new_keys_are_taken_up(host: Host) -> None:
    directory, token = await host.open(TASK_A)
    (host.root / "credentials/key-0").write_text("sk-new")
    host.keeper.reload()
    await host.run(directory, token, sys.executable, "-c", TOOL)
    assert host.provider.asked[0].headers["x-api-key"] == "sk-new"


@pytest.mark.parametrize(
    ("command", "code"), [(["/nowhere/program"], 127), (["/etc/passwd"], 126), (["/bin/sh", "-c", "exit 5"], 5)]
)
async def test_the_command_keeps_its_exit_code(tmp_path: Path, command: list[str], code: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *forwarding(tmp_path, TASK_A), *command,
        start_new_session=True, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == code
    await end_group(process)


async def test_a_second_command_uses_the_first_ones_way_out(host: Host) -> None:
    directory, token = await host.open(TASK_A)
    again = " ".join(shlex.quote(word) for word in [*forwarding(directory, directory.name), sys.executable, "-c", TOOL])
    code, output = await host.run(directory, token, "/bin/sh", "-c", again)
    assert code == 7
    assert "message_stop" in output


async def test_the_forwarder_passes_much_both_ways_and_the_ends_of_each(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
        writer.write(b"end")
        writer.close()

    made = sockets.Listening(tmp_path, variables.socket_name(TASK_A), mode=0o600, queue=8)
    server = await asyncio.start_unix_server(echo, sock=made.socket)
    tool = (
        "import os, socket, threading, urllib.parse\n"
        "at = urllib.parse.urlsplit(os.environ['AGENTINA_GATEWAY'])\n"
        "def one():\n"
        "    s = socket.create_connection((at.hostname, at.port))\n"
        "    t = threading.Thread(target=lambda: (s.sendall(b'x' * 3000000), s.shutdown(socket.SHUT_WR)))\n"
        "    t.start(); n = 0\n"
        "    while p := s.recv(65536): n += len(p); last = p\n"
        "    t.join(); assert n == 3000003 and last.endswith(b'end'), n\n"
        "ts = [threading.Thread(target=one) for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; print('good')\n"
    )
    process = await asyncio.create_subprocess_exec(
        *forwarding(tmp_path, TASK_A), sys.executable, "-c", tool,
        env=variables.tell(TASK_A, "agt_x"), start_new_session=True, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), deadlines.HANG)
    await end_group(process)
    made.remove()
    server.close()
    assert output == b"good\n"


@pytest.mark.slow
async def test_its_memory_stays_flat(host: Host) -> None:
    """An answer of 200 MB, and then twenty tasks at once with 10 MB each, again and again."""
    doors = [await host.open(f"task_{number}") for number in range(20)]
    for place, token in doors:
        await drain(place, token)
    before = procfs.memory_mib(host.keeper.pid)
    host.provider.scenario, host.provider.large = "large", 200_000_000
    assert await drain(*doors[0]) > 200_000_000
    assert procfs.memory_mib(host.keeper.pid) - before < 8
    host.provider.large = 10_000_000
    after = []
    for _ in range(6):
        assert min(await asyncio.gather(*(drain(*door) for door in doors))) > 9_900_000
        after.append(procfs.memory_mib(host.keeper.pid))
    # What is on its way: some pieces each way for each task, once.
    assert max(after) - before < 60
    # How many of them are on their way at once is chance; three hundredths of each 200 MB that stay would show.
    assert min(after[3:]) - max(after[:3]) < 6, after
    story = record.read(doors[0][0])
    assert story is not None
    assert story.totals.calls == 8


async def drain(directory: Path, token: str) -> int:
    """Call a model and read its answer away; how many bytes it had."""
    place = str(directory / variables.socket_name(directory.name))
    reader, writer = await asyncio.open_unix_connection(place, limit=1 << 20)
    body = json.dumps(gates.message()).encode()
    head = f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: {token}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    size = 0
    while piece := await reader.read(1 << 20):
        size += len(piece)
    writer.close()
    return size

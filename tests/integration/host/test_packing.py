"""Checkpoints packed where the daemon cannot see: by the real packer, beside a daemon that only hears it."""
# Setting the stage blocks the loop, on purpose and for milliseconds.

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.executors import contract
from agentina.host.trees import checkpoints, packing, turns, workspaces
from agentina.system import tasks
from tests.fakes import executor
from tests.integration.host import test_checkpoints
from tests.integration.host.test_workspaces import Repository


class SlotExecutor(executor.FakeExecutor):
    """One whose tasks have companions: it starts and ends them as a supervisor does."""

    def __init__(self, orders: Path) -> None:
        super().__init__(executor.FakeKernel({}))
        self.orders: Path | None = orders
        self.companions: list[subprocess.Popen[bytes]] = []
        #: What comes in place of the packer, if anything.
        self.instead: Callable[[str], None] | None = None

    def door(self, directory: Path) -> contract.Door:
        return contract.Door(self.orders or directory, self.orders, is_shared=True)

    def accompany(self, directory: Path, companion: contract.Companion | None) -> None:  # noqa: ARG002 - it has one task
        if companion is None:
            self.end()
        elif self.instead is None:
            self.companions.append(subprocess.Popen(companion.argv, start_new_session=True))
        else:
            self.instead(companion.argv[-2])

    def end(self) -> None:
        for companion in self.companions:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(companion.pid, signal.SIGKILL)
            companion.wait()


@pytest.fixture
def slots() -> Iterator[SlotExecutor]:
    # A short path, for sockets.
    with tempfile.TemporaryDirectory(prefix="ag-", dir="/tmp") as orders:
        made = SlotExecutor(Path(orders))
        yield made
        made.end()


@pytest.fixture
async def prepared(tmp_path: Path) -> workspaces.Prepared:
    here = tmp_path / "here"
    (here / "sessions/2026").mkdir(parents=True)
    (here / "sessions/2026/rollout.jsonl").write_text('{"a":1}\n{"ha')
    job = test_checkpoints.job(Repository(tmp_path / "origin"))
    return await workspaces.Workspaces(tmp_path / "cache").prepare(job, here)


def slot_of(slots: SlotExecutor, prepared: workspaces.Prepared, share: turns.Share | None = None) -> packing.Slot:
    share = share or turns.Share(turns.Turns())
    return packing.Slot(executor=slots, directory=prepared.path.parent, share=share)


async def fails(slots: SlotExecutor, prepared: workspaces.Prepared, share: turns.Share | None = None) -> str:
    """Why it does; nothing is left of it."""
    with pytest.raises(errors.AgentinaError) as caught:
        await test_checkpoints.packed(prepared.path.parent, prepared, slot=slot_of(slots, prepared, share))
    assert caught.value.code == "CHECKPOINT_FAILED"
    check_nothing_left(slots, prepared)
    return str(caught.value)


def check_nothing_left(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    assert slots.orders is None or list(slots.orders.iterdir()) == []
    directory = prepared.path.parent / checkpoints.DIRECTORY
    assert not directory.exists() or list(directory.iterdir()) == []
    assert all(companion.returncode is not None for companion in slots.companions)


async def test_both_ways_make_the_same_bytes(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    workspace, here = prepared.path, prepared.path.parent
    test_checkpoints.git(workspace, "checkout", "-q", "-b", "fix")
    (workspace / "committed.txt").write_text("committed\n")
    test_checkpoints.git(workspace, "add", "committed.txt")
    test_checkpoints.git(workspace, "commit", "-q", "-m", "work")
    (workspace / "src/app.py").write_bytes(b"print('two')\n")
    (workspace / "large").write_bytes(os.urandom(1 << 20) + b"end")
    (workspace / "empty").touch()
    (workspace / "new\n dir").mkdir()
    (workspace / "new\n dir/file").write_text("new\n")
    (workspace / os.fsdecode(b"caf\xe9")).write_text("latin\n")
    (workspace / "old.txt").unlink()
    (workspace / "run.sh").chmod(0o755)
    (workspace / "link").symlink_to("src/app.py")
    (workspace / "out").symlink_to("/etc/passwd")
    os.mkfifo(workspace / "fifo")
    (workspace / "build").mkdir()
    (workspace / "build/cache").write_text("wanted\n")
    (workspace / "debug.log").write_text("not wanted\n")
    outside = await test_checkpoints.packed(here, prepared, ignored=("build/",))
    inside = await test_checkpoints.packed(here, prepared, ignored=("build/",), slot=slot_of(slots, prepared))
    assert inside.artifact.sha256 == outside.artifact.sha256
    assert inside.left_out == outside.left_out
    assert "workspace/out" in inside.left_out
    assert slots.orders is not None
    assert list(slots.orders.iterdir()) == []


async def test_without_a_repository_everything_is_taken(slots: SlotExecutor, tmp_path: Path) -> None:
    here = tmp_path / "plain"
    (here / "sessions").mkdir(parents=True)
    (here / "workspace/a/b").mkdir(parents=True)
    (here / "workspace/a/b/c").write_text("c\n")
    plain = workspaces.Prepared(path=here / "workspace", commit="")
    outside = await test_checkpoints.packed(here, plain)
    inside = await test_checkpoints.packed(here, plain, slot=slot_of(slots, plain))
    assert inside.artifact.sha256 == outside.artifact.sha256


async def test_what_is_too_large_ends_the_packer(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    with (prepared.path / "huge").open("wb") as file:
        file.truncate(1 << 30)
    assert "larger than 16777216 bytes" in await fails(slots, prepared)


async def test_nobody_comes(
    slots: SlotExecutor, prepared: workspaces.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "START_SECONDS", 0.1)
    slots.instead = lambda _: None
    assert "started no packer" in await fails(slots, prepared)


async def test_one_that_is_stopped_takes_no_longer_than_it_may(
    slots: SlotExecutor, prepared: workspaces.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SECONDS", 0.3)
    held: list[socket.socket] = []

    def hold(path: str) -> None:
        held.append(connected(path))

    slots.instead = hold
    assert "did not end within" in await fails(slots, prepared)
    held[0].close()


async def test_one_that_is_killed_is_heard_of_at_once(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    slots.instead = lambda path: connected(path).close()
    assert "ended before it had sent everything" in await fails(slots, prepared)


async def test_its_reason_is_told(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    (prepared.path.parent / "sessions").rename(prepared.path.parent / "elsewhere")
    assert "there is no sessions" in await fails(slots, prepared)


async def test_a_task_that_has_ended_has_none(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    slots.orders = None
    assert "has ended" in await fails(slots, prepared)


async def test_given_up_it_leaves_nothing(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    """The daemon ends, or the task does: at once, though the packer would go on for ever."""
    slot = slot_of(slots, prepared)
    came = asyncio.Event()
    held: list[socket.socket] = []

    def hold(path: str) -> None:
        held.append(connected(path))
        came.set()

    slots.instead = hold
    taking = tasks.start(test_checkpoints.packed(prepared.path.parent, prepared, slot=slot), name="taking")
    await came.wait()
    await asyncio.to_thread(held[0].recv, 1)  # it is asked, so a thread waits for its answer
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(taking, 20)
    held[0].close()
    check_nothing_left(slots, prepared)
    slots.instead = None
    assert (await test_checkpoints.packed(prepared.path.parent, prepared, slot=slot)).artifact.size


async def test_one_that_takes_long_is_ended_for_others(slots: SlotExecutor, prepared: workspaces.Prepared) -> None:
    held: list[socket.socket] = []
    slots.instead = lambda path: held.append(connected(path))
    queue = turns.Turns(fair_seconds=0.05)
    async with turns.Share(queue).turn(), asyncio.TaskGroup() as others:
        others.create_task(one_turn(turns.Share(queue)))
        assert "waited for their turn" in await fails(slots, prepared, turns.Share(queue))
    held[0].close()


async def one_turn(share: turns.Share) -> None:
    async with share.turn():
        pass


def connected(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.connect(path)
    return made


async def test_packer_that_cannot_be_called_off_leaves_no_socket(
    slots: SlotExecutor, prepared: workspaces.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path, companion: contract.Companion | None) -> None:
        if companion is None:
            raise errors.STATE_UNWRITABLE(path="orders", problem="Read-only file system")
        raise errors.DISK_FULL(path="orders")

    monkeypatch.setattr(slots, "accompany", refuse)
    before = open_files()
    with pytest.raises(errors.AgentinaError):
        await test_checkpoints.packed(prepared.path.parent, prepared, slot=slot_of(slots, prepared))
    assert open_files() == before
    check_nothing_left(slots, prepared)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())

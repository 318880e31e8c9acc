"""What is seen of a process tree and of a directory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.executors import containment
from tests.fakes import deadlines


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A process with two threads, a child and a grandchild, all of  its input."""
    code = (
        "import subprocess, sys, threading\n"
        "threading.Thread(target=sys.stdin.read, daemon=True).start()\n"
        "subprocess.Popen(['sh', '-c', 'sleep 20 & sleep 20; true'])\n"
        "print('ready', flush=True)\n"
        "threading.Event().wait(20)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + deadlines.HANG
    while len(containment.tree_below(process.pid).pids) < 3:
        assert time.monotonic() < deadline
    yield process
    for pid in containment.tree_below(process.pid).pids:
        os.kill(pid, 9)
    process.kill()
    process.communicate()


def test_tree_has_all_descendants_and_threads(family: subprocess.Popen[bytes]) -> None:
    below = containment.tree_below(family.pid)
    assert (len(below.pids), below.threads) == (3, 3)
    own = containment.tree_below(os.getpid())
    assert {family.pid, *below.pids} <= set(own.pids)
    assert own.threads >= 5
    assert sorted(containment._tree_by_parents(family.pid).pids) == sorted(below.pids)


def test_memory_with_shared_pages_counted_once_is_less(family: subprocess.Popen[bytes]) -> None:
    pids = [family.pid, *containment.tree_below(family.pid).pids]
    assert 0 < containment.proportional_bytes(pids) < containment.resident_bytes(pids)
    assert containment.resident_bytes([1 << 22]) == containment.proportional_bytes([1 << 22]) == 0


def test_walk_counts_blocks_once_and_follows_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "huge").write_bytes(b"x" * (4 << 20))
    inside = tmp_path / "inside"
    (inside / "a/b").mkdir(parents=True)
    (inside / "a/b/file").write_bytes(b"x" * (1 << 20))
    (inside / "a/again").hardlink_to(inside / "a/b/file")
    (inside / "link").symlink_to(outside)
    with (inside / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    walk = containment.DiskWalk(str(inside))
    while not walk.step(entries=2):
        pass
    assert 1 << 20 <= walk.used < 2 << 20


def test_walk_through_what_is_not_there_is_empty(tmp_path: Path) -> None:
    walk = containment.DiskWalk(str(tmp_path / "nowhere"))
    assert walk.step()
    assert walk.used == 0


def test_cgroup_figures_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (tmp_path / "memory.peak").write_text("4096\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (tmp_path / "io.stat").write_text(
        "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n8:16 rbytes=1 wbytes=2 rios=3 wios=4\n"
    )
    assert containment.cgroup_usage(str(tmp_path)) == (1.5, 4096, 11, 22, 10, 1)
    assert containment.cgroup_usage(str(tmp_path / "none")) == (None, None, None, None, None, 0)


def test_fifo_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lease")
    assert containment.read_small(str(tmp_path / "lease")) == b""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from agentina import errors
from agentina.system import files
from tests.fakes import mounts

NOBODY: Final = 65534


def test_content_is_replaced_and_private(tmp_path: Path) -> None:
    target = tmp_path / "state"
    files.write_atomic(target, b"one")
    files.write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    directory = tmp_path / "taken"
    directory.mkdir()
    with pytest.raises(errors.AgentinaError, match="STATE_UNWRITABLE"):
        files.write_atomic(directory, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda *_: real("/dev/full", os.O_WRONLY))
    with pytest.raises(errors.AgentinaError, match="DISK_FULL"):
        files.write_atomic(tmp_path / "state", b"content")


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 65_537, 300_000])
def test_all_of_a_file_is_read(tmp_path: Path, size: int) -> None:
    target = tmp_path / "state"
    target.write_bytes(os.urandom(size))
    assert files.read_bounded(target, limit=size) == target.read_bytes()


def test_reading_is_bounded(tmp_path: Path) -> None:
    target = tmp_path / "big"
    target.write_bytes(b"x" * 11)
    with pytest.raises(errors.AgentinaError, match="INPUT_TOO_LARGE"):
        files.read_bounded(target, limit=10)


def test_damaged_file_is_kept_under_another_name(tmp_path: Path) -> None:
    target = tmp_path / "identity"
    target.write_bytes(b"???")
    aside = files.set_aside(target, stamp="20261121")
    assert not target.exists()
    assert aside.read_bytes() == b"???"


def test_lock_is_exclusive_and_visible(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not files.is_locked(path)
    with files.exclusive_lock(path):
        assert files.is_locked(path)
        with pytest.raises(BlockingIOError), files.exclusive_lock(path):
            pass
    assert not files.is_locked(path)


def test_tree_without_write_permission_is_removed(tmp_path: Path) -> None:
    deep = tmp_path / "task" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    deep.chmod(0o500)
    deep.parent.chmod(0o500)
    files.remove_tree(tmp_path / "task")
    assert not (tmp_path / "task").exists()


def as_plain_user(place: Path, action: Callable[[], object]) -> None:
    """Do something in ``place`` as a user for whom rights count, in a process of its own."""
    place.chmod(0o777)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(place)
            if os.getuid() == 0:
                os.setresuid(*[NOBODY] * 3)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tree_without_any_permission_is_removed_whoever_runs(tmp_path: Path) -> None:
    def act() -> None:
        deep = Path("task/a/b")
        deep.mkdir(parents=True)
        (deep / "file").touch()
        for mode, path in ((0, deep), (0o100, deep.parent), (0, deep.parent.parent)):
            path.chmod(mode)
        files.remove_tree(Path("task"))

    as_plain_user(tmp_path, act)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("link", "target"), [(os.symlink, "../../outside"), (os.link, "outside")])
def test_modes_outside_stay_where_a_removed_tree_leads_to_them(
    tmp_path: Path, link: Callable[[str, str], None], target: str
) -> None:
    def act() -> None:
        Path("task/a").mkdir(parents=True)
        Path("outside").touch()
        Path("outside").chmod(0o640)
        link(target, "task/a/link")
        Path("task/a").chmod(0o500)
        files.remove_tree(Path("task"))

    as_plain_user(tmp_path, act)
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("outside", 0o640)]


def test_a_link_in_the_place_of_a_tree_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o750)
    (outside / "file").touch()
    (tmp_path / "task").symlink_to(outside)
    files.remove_tree(tmp_path / "task")
    assert list(tmp_path.iterdir()) == [outside]
    assert (outside / "file").exists()
    assert outside.stat().st_mode & 0o777 == 0o750


def test_trees_deeper_than_python_recurses_and_paths_reach_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "task"
    top.mkdir()
    directory = os.open(top, files.DIRECTORY)
    for number in range(3000):
        os.mkdir("deep", dir_fd=directory)
        below = os.open("deep", files.DIRECTORY, dir_fd=directory)
        if number % 100 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(directory)
        directory = below
    os.close(directory)
    files.remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_what_is_mounted_in_a_tree_stays(tmp_path: Path) -> None:
    outside, place = tmp_path / "outside", tmp_path / "task/a/mounted"
    for path in (outside, place):
        path.mkdir(parents=True)
    (outside / "file").touch()
    (tmp_path / "task/file").touch()
    with mounts.bound(outside, place):
        files.remove_tree(tmp_path / "task")
        assert (place / "file").exists()
        assert not (tmp_path / "task/file").exists()
    files.remove_tree(tmp_path / "task")
    assert list(tmp_path.iterdir()) == [outside]


def test_a_tree_is_made_durable_with_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "pipe")
    synced = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    files.sync_tree(tmp_path)
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "file"}


def test_directories_are_spread_where_the_file_system_can(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    files.spread_below(tmp_path)
    files.spread_below(tmp_path)
    if kind.strip() != "ext2/ext3":
        pytest.skip("only ext4 knows the hint")
    shown = subprocess.run(["lsattr", "-d", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "T" in shown.split()[0]


def test_directories_are_not_spread_where_it_cannot() -> None:
    files.spread_below(Path("/proc"))


def test_removing_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    files.remove_tree(tmp_path / "absent")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_fifo_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not files.is_locked(tmp_path / "lock")


def test_writer_of_a_fifo_is_not_waited_for_where_a_task_may_have_put_one(tmp_path: Path) -> None:
    fifo = tmp_path / "result.json"
    os.mkfifo(fifo)
    assert files.read_bounded(fifo, wait=False) == b""
    writer = os.open(fifo, os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            files.read_bounded(fifo, wait=False)
    finally:
        os.close(writer)

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentina.host import janitor
from agentina.system import pace, paths, tasks
from tests.fakes import deadlines, mounts


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    made = paths.Layout(tmp_path).instance("default")
    made.tasks.mkdir(parents=True)
    return made


def task(instance: paths.InstancePaths, name: str) -> Path:
    path = instance.tasks / name
    (path / "workspace").mkdir(parents=True)
    (path / "workspace/file").write_text("x")
    (path / "job.json").write_text("sesame-open")
    (path / "output.log").write_text("out")
    return path


def cleaner(instance: paths.InstancePaths, *, days: float = 3.0, reserve: int = 0) -> janitor.Janitor:
    return janitor.Janitor(instance, keep_days=days, disk_reserve=reserve)


def test_forgotten_directories_go(instance: paths.InstancePaths) -> None:
    path = task(instance, "a")
    (path / "workspace").chmod(0o500)
    cleaner(instance)._clean([(path, False)])
    assert list(instance.tasks.iterdir()) == list((instance.state / "trash").iterdir()) == []


def plain(instance: paths.InstancePaths, name: str, *, size: int = 0) -> Path:
    """What most tasks leave."""
    path = instance.tasks / name
    for each in (path, path / "workspace"):
        each.mkdir(mode=0o700)
    for file in ("supervisor", "result.json", "output.log"):
        (path / file).touch()
    os.truncate(path / "output.log", size)
    return path


def make_fast(clean: janitor.Janitor) -> None:
    """Have it delete on the event loop."""
    clean._pace = pace.Pace(fast_seconds=deadlines.HANG)
    while not clean._pace.is_fast:
        clean._pace.note(0.0)


async def test_plain_directories_go_without_a_thread_where_that_is_fast(instance: paths.InstancePaths) -> None:
    clean = cleaner(instance)
    first = (plain(instance, "first"), False)
    assert await clean._clean_plain([first]) == [first]
    clean._clean([first])
    make_fast(clean)
    many = [(plain(instance, f"task-{number}"), False) for number in range(20)]
    kept = (plain(instance, "failed"), True)
    assert await clean._clean_plain([*many, kept]) == [kept]
    assert [path.name for path in instance.tasks.iterdir()] == ["failed"]
    assert list((instance.state / "trash").iterdir()) == []


def reusing(instance: paths.InstancePaths) -> janitor.Janitor:
    """One that deletes on the event loop and keeps directories for the next tasks."""
    clean = janitor.Janitor(instance, keep_days=3.0, disk_reserve=0, spare=1)
    clean._clean([])
    make_fast(clean)
    return clean


async def test_plain_directories_are_used_again(instance: paths.InstancePaths) -> None:
    clean = reusing(instance)
    path = plain(instance, "former")
    number = path.stat().st_ino
    assert await clean._clean_plain([(path, False)]) == []
    # What is cleaned up meanwhile does not touch it.
    clean._clean([(task(instance, "other"), False)])
    assert clean.spares.use(instance.tasks / "next")
    assert (instance.tasks / "next").stat().st_ino == number
    assert [each.name for each in (instance.tasks / "next").iterdir()] == ["workspace"]
    assert len(list((instance.state / "trash").iterdir())) == 1


async def test_directories_that_nobody_uses_go_but_for_what_is_had_ready(instance: paths.InstancePaths) -> None:
    clean = reusing(instance)
    await clean._clean_plain([(plain(instance, name), False) for name in "abc"])
    assert len(list((instance.state / "trash").iterdir())) == 4
    clean._clean([])
    assert [str(path) for path in (instance.state / "trash").iterdir()] == list(clean.spares.paths)
    assert clean.spares.use(instance.tasks / "next")
    assert not clean.spares.use(instance.tasks / "another")


def test_no_directory_is_used_again_where_others_may_have_had_it(instance: paths.InstancePaths) -> None:
    clean = cleaner(instance)
    path = plain(instance, "former")
    clean._clean([])
    assert clean._delete_plain(path)
    assert not clean.spares.use(instance.tasks / "next")
    assert list((instance.state / "trash").iterdir()) == []


async def test_what_a_killed_daemon_left_goes_with_the_start_of_the_next(instance: paths.InstancePaths) -> None:
    (instance.state / "trash/spare.1/workspace").mkdir(parents=True)
    clean = janitor.Janitor(instance, keep_days=3.0, disk_reserve=0, spare=3)
    running = tasks.start(clean.run(), name="janitor")
    async with asyncio.timeout(deadlines.HANG):
        while len(clean.spares.paths) < 3:  # noqa: ASYNC110 - another thread's work
            await asyncio.sleep(0.01)
    await tasks.cancel(running)
    assert {str(path) for path in (instance.state / "trash").iterdir()} == clean.spares.paths


def add_file(path: Path) -> None:
    (path / "workspace/file").touch()


def add_said(path: Path) -> None:
    (path / "said.json").touch()


def take_output(path: Path) -> None:
    (path / "output.log").unlink()


def link_workspace(path: Path) -> None:
    (path / "workspace").rmdir()
    (path / "workspace").symlink_to(path.parent / "other")


@pytest.mark.parametrize("change", [add_file, add_said, take_output, link_workspace])
def test_all_others_are_left_to_the_thread(instance: paths.InstancePaths, change: Callable[[Path], None]) -> None:
    clean = cleaner(instance)
    clean._clean([])
    other = plain(instance, "other")
    path = plain(instance, "a")
    change(path)
    assert not clean._delete_plain(path)
    clean._clean([(path, False)])
    assert list(instance.tasks.iterdir()) == [other]
    assert (other / "workspace").is_dir()
    assert list((instance.state / "trash").iterdir()) == []


def test_much_output_is_left_to_the_thread(instance: paths.InstancePaths) -> None:
    clean = cleaner(instance)
    clean._clean([])
    assert clean._delete_plain(plain(instance, "a", size=64 << 10))
    assert not clean._delete_plain(plain(instance, "b", size=(64 << 10) + 1))


def test_trees_deeper_than_most_go_and_links_are_not_followed(instance: paths.InstancePaths) -> None:
    path = task(instance, "a")
    (path / "workspace/1/2/3/4/5").mkdir(parents=True)
    (path / "workspace/1/2/3/4/5/file").touch()
    outside = instance.state / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (path / "workspace/link").symlink_to(outside)
    (path / "workspace/1/2/link").symlink_to(outside / "file")
    cleaner(instance)._clean([(path, False)])
    assert list(instance.tasks.iterdir()) == list((instance.state / "trash").iterdir()) == []
    assert (outside / "file").exists()


def test_failed_ones_are_kept_without_their_secrets(instance: paths.InstancePaths) -> None:
    path = task(instance, "a")
    cleaner(instance)._clean([(path, True)])
    kept = instance.state / "tasks-kept/a"
    assert not path.exists()
    assert (kept / "output.log").read_text() == "out"
    assert not (kept / "job.json").exists()
    assert (kept / "workspace/file").exists()


def test_kept_ones_lose_their_workspace_when_the_disk_is_low(instance: paths.InstancePaths) -> None:
    cleaner(instance, reserve=1 << 60)._clean([(task(instance, "a"), True)])
    kept = instance.state / "tasks-kept/a"
    assert (kept / "output.log").exists()
    assert not (kept / "workspace").exists()


def test_kept_ones_go_when_their_days_are_over(instance: paths.InstancePaths) -> None:
    clean = cleaner(instance)
    clean._clean([(task(instance, "old"), True), (task(instance, "new"), True)])
    past = time.time() - 4 * 86_400
    os.utime(instance.state / "tasks-kept/old", (past, past))
    clean._clean([])
    assert [path.name for path in (instance.state / "tasks-kept").iterdir()] == ["new"]


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_link_in_the_place_of_a_directory_leads_to_stays(instance: paths.InstancePaths, keep: bool) -> None:  # noqa: FBT001 - a case
    outside = plain(instance, "outside")
    outside.chmod(0o750)
    link = instance.tasks / "a"
    link.symlink_to(outside)
    clean = reusing(instance)
    clean._clean([(link, keep)])
    clean._clean([])
    assert sorted(path.name for path in outside.iterdir()) == ["output.log", "result.json", "supervisor", "workspace"]
    assert outside.stat().st_mode & 0o777 == 0o750
    assert list(instance.tasks.iterdir()) == [outside]
    assert {str(path) for path in (instance.state / "trash").iterdir()} == clean.spares.paths
    assert list((instance.state / "tasks-kept").glob("*")) == []


def test_a_file_in_the_place_of_a_kept_directory_goes(instance: paths.InstancePaths) -> None:
    (instance.tasks / "a").touch()
    cleaner(instance)._clean([(instance.tasks / "a", True)])
    assert list(instance.tasks.iterdir()) == list((instance.state / "trash").iterdir()) == []


def test_a_link_to_nowhere_among_the_kept_ones_stops_nothing(instance: paths.InstancePaths) -> None:
    clean = cleaner(instance)
    clean._clean([(task(instance, "old"), True)])
    past = time.time() - 4 * 86_400
    os.utime(instance.state / "tasks-kept/old", (past, past))
    (instance.state / "tasks-kept/link").symlink_to("nowhere")
    clean._clean([])
    assert [path.name for path in (instance.state / "tasks-kept").iterdir()] == ["link"]


def test_what_is_mounted_in_a_directory_is_not_deleted(instance: paths.InstancePaths, tmp_path: Path) -> None:
    """And goes on being there until somebody takes it away; all the rest is deleted."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    path = instance.state / "trash/a"
    (path / "workspace/mounted").mkdir(parents=True)
    (path / "workspace/file").touch()
    clean = cleaner(instance)
    with mounts.bound(outside, path / "workspace/mounted"):
        clean._clean([(task(instance, "other"), False)])
        assert [each.name for each in (path / "workspace").iterdir()] == ["mounted"]
        assert (outside / "file").exists()
    clean._clean([])
    assert list(instance.tasks.iterdir()) == list((instance.state / "trash").iterdir()) == []


def test_no_days_keep_nothing(instance: paths.InstancePaths) -> None:
    clean = cleaner(instance, days=0)
    clean.remove(task(instance, "a"), keep=True)
    assert clean._queue[0][1] is False


def test_directory_already_gone_stops_nothing(instance: paths.InstancePaths) -> None:
    there = task(instance, "b")
    cleaner(instance)._clean([(instance.tasks / "gone", False), (there, False)])
    assert not there.exists()


def test_what_a_killed_daemon_left_in_the_trash_goes(instance: paths.InstancePaths) -> None:
    (instance.state / "trash/x/deep").mkdir(parents=True)
    cleaner(instance)._clean([])
    assert not (instance.state / "trash/x").exists()


async def test_what_a_full_disk_cannot_put_away_goes_later(
    instance: paths.InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(janitor, "_GATHER_SECONDS", 0.0)
    clean, path = cleaner(instance), task(instance, "a")
    full = asyncio.Event()
    loop = asyncio.get_running_loop()

    def refuse(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(full.set)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", refuse)
        clean.remove(path, keep=True)
        running = tasks.start(clean.run(), name="janitor")
        await asyncio.wait_for(full.wait(), deadlines.HANG)
    async with asyncio.timeout(deadlines.HANG):
        while path.exists():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    await tasks.cancel(running)
    assert not (instance.state / "tasks-kept/a/job.json").exists()

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentina.host.work import spares
from agentina.system import files
from tests.fakes import mounts


@pytest.fixture
def trash(tmp_path: Path) -> Path:
    path = tmp_path / "trash"
    path.mkdir(mode=0o700)
    return path


def begun(trash: Path, tmp_path: Path, *, most: int = 2) -> spares.Spares:
    """One that knows how a new directory looks, and has none now."""
    made = spares.Spares(trash, most=most)
    made.fill(1)
    assert made.use(tmp_path / "first")
    return made


def emptied(trash: Path, name: str = "former") -> Path:
    """A directory as the janitor has it when it has deleted the files in it."""
    path = trash / name
    for each in (path, path / "workspace"):
        each.mkdir(mode=0o700)
    return path


def test_what_looks_like_new_is_used_again(trash: Path, tmp_path: Path) -> None:
    kept = begun(trash, tmp_path)
    path = emptied(trash)
    number = path.stat().st_ino
    assert kept.keep(str(path))
    assert kept.paths == {str(path)}
    assert list(trash.iterdir()) == [path]
    assert kept.use(tmp_path / "next")
    assert (tmp_path / "next").stat().st_ino == number
    assert [each.name for each in (tmp_path / "next").iterdir()] == ["workspace"]
    assert kept.paths == frozenset()


def leave_file(path: Path) -> None:
    (path / "workspace/.hidden").touch()


def leave_said(path: Path) -> None:
    (path / "said.json").touch()


def open_up(path: Path) -> None:
    (path / "workspace").chmod(0o755)


def open_up_all(path: Path) -> None:
    path.chmod(0o711)


def set_group(path: Path) -> None:
    (path / "workspace").chmod(0o2700)


def label(path: Path) -> None:
    try:
        os.setxattr(path / "workspace", "user.note", b"mine")
    except OSError as error:
        pytest.skip(f"no attributes here: {error}")


def flag(path: Path) -> None:
    """Chattr +d: no file made in it later goes into a dump(8)."""
    descriptor = os.open(path / "workspace", os.O_RDONLY)
    try:
        flags = files.inode_flags(descriptor) | 0x40
        fcntl.ioctl(descriptor, files._FS_IOC_SETFLAGS, flags.to_bytes(4, "little"))
    except OSError as error:
        pytest.skip(f"no flags here: {error}")
    finally:
        os.close(descriptor)


def give_away(path: Path) -> None:
    try:
        os.chown(path / "workspace", 65534, 65534)
    except PermissionError:
        pytest.skip("only root gives directories away")


def grow(path: Path) -> None:
    """Many files were there once: on some file systems whoever lists it pays for that for ever."""
    before = (path / "workspace").stat().st_size
    names = [path / "workspace" / ("x" * 200 + str(number)) for number in range(200)]
    for name in names:
        name.touch()
    for name in names:
        name.unlink()
    if (path / "workspace").stat().st_size == before:
        pytest.skip("directories shrink here")


def take_workspace(path: Path) -> None:
    (path / "workspace").rmdir()
    (path / "work").mkdir(mode=0o700)


def link_workspace(path: Path) -> None:
    (path / "workspace").rmdir()
    (path / "workspace").symlink_to(emptied(path.parent.parent, "other") / "workspace")


CHANGES = [
    leave_file, leave_said, open_up, open_up_all, set_group, label, flag, give_away, grow, take_workspace,
    link_workspace,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_task_changed_is_not_used(trash: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    kept = begun(trash, tmp_path)
    path = emptied(trash)
    change(path)
    with contextlib.suppress(OSError):
        kept.keep(str(path))
    assert not kept.use(tmp_path / "next")
    assert list(trash.iterdir()) == [path]


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_changed_while_it_lay_there_is_not_used(
    trash: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    kept = begun(trash, tmp_path)
    good, path = emptied(trash, "good"), emptied(trash)
    number = good.stat().st_ino
    assert kept.keep(str(good))
    assert kept.keep(str(path))
    change(path)
    assert kept.use(tmp_path / "next")
    assert (tmp_path / "next").stat().st_ino == number
    assert not kept.use(tmp_path / "another")
    assert list(trash.iterdir()) == [path]
    assert kept.paths == frozenset()


def test_one_that_is_about_to_be_used_is_not_to_be_deleted(
    trash: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = begun(trash, tmp_path)
    path = emptied(trash)
    assert kept.keep(str(path))
    look, move, seen = spares._look_at, spares._move, []

    def noted_look(spare: str) -> object:
        seen.append(kept.paths)
        return look(spare)

    def noted_move(spare: str, to: Path) -> bool:
        seen.append(kept.paths)
        return move(spare, to)

    monkeypatch.setattr(spares, "_look_at", noted_look)
    monkeypatch.setattr(spares, "_move", noted_move)
    assert kept.use(tmp_path / "next")
    assert seen == [{str(path)}] * 2
    assert kept.paths == frozenset()


def test_one_whose_workspace_is_another_directory_mounted_there_is_not_used(trash: Path, tmp_path: Path) -> None:
    kept = begun(trash, tmp_path)
    path, outside = emptied(trash), tmp_path / "outside"
    outside.mkdir(mode=0o700)
    with mounts.bound(outside, path / "workspace"):
        assert kept.keep(str(path))
        assert not kept.use(tmp_path / "next")
        assert kept.paths == frozenset()


@pytest.mark.parametrize("change", [leave_file, leave_said, take_workspace])
def test_what_has_more_in_it_is_not_kept(trash: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    kept = begun(trash, tmp_path)
    path = emptied(trash)
    change(path)
    assert not kept.keep(str(path))


def test_no_more_are_kept_than_asked_for(trash: Path, tmp_path: Path) -> None:
    kept = begun(trash, tmp_path)
    assert [kept.keep(str(emptied(trash, name))) for name in "abc"] == [True, True, False]
    kept.shrink(1)
    assert kept.paths == {str(trash / "a")}
    kept.fill(3)
    assert len(kept.paths) == 2


def test_none_is_kept_before_it_is_known_how_a_new_one_looks(trash: Path) -> None:
    assert not spares.Spares(trash, most=2).keep(str(emptied(trash)))


def test_file_systems_without_attributes_will_do(trash: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> list[str]:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "listxattr", refuse)
    assert begun(trash, tmp_path).keep(str(emptied(trash)))


def test_none_is_made_where_none_may_be_used_again(trash: Path) -> None:
    spares.Spares(trash, most=0).fill(5)
    assert list(trash.iterdir()) == []


def test_those_made_in_advance_are_empty(trash: Path, tmp_path: Path) -> None:
    made = spares.Spares(trash, most=5)
    made.fill(3)
    assert {str(path) for path in trash.iterdir()} == made.paths
    made.fill(2)
    assert len(made.paths) == 3
    for number in range(3):
        assert made.use(tmp_path / str(number))
        assert [each.name for each in (tmp_path / str(number)).iterdir()] == ["workspace"]
        assert not list((tmp_path / str(number) / "workspace").iterdir())
        assert (tmp_path / str(number)).stat().st_mode == 0o40700
    assert not made.use(tmp_path / "3")


def test_nothing_is_lost_where_it_cannot_be_used(trash: Path, tmp_path: Path) -> None:
    kept = begun(trash, tmp_path, most=3)
    for name in "ab":
        assert kept.keep(str(emptied(trash, name)))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    assert not kept.use(taken)
    assert (taken / "file").exists()
    # Somebody emptied the trash.
    (trash / "a/workspace").rmdir()
    (trash / "a").rmdir()
    assert not kept.use(tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_they_are_compared_with_one_made_in_the_same_place(trash: Path, tmp_path: Path) -> None:
    """What every directory gets from the one it is made in does not count."""
    trash.chmod(0o2700)
    kept = begun(trash, tmp_path, most=1)
    path = emptied(trash)
    assert path.stat().st_mode & 0o2000
    assert kept.keep(str(path))

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.host import provision
from agentina.host.work import choices
from agentina.runners import copies
from agentina.system import files, paths
from tests.fakes import agent_packages

PROGRAM = agent_packages.program("2.1.3")


@pytest.fixture
def layout(tmp_path: Path) -> paths.Layout:
    return paths.Layout(tmp_path / "root")


@pytest.fixture
def store(layout: paths.Layout) -> provision.Store:
    return provision.Store(layout)


def package(tmp_path: Path, version: str = "2.1.3") -> Path:
    content = {"package/bin/claude": agent_packages.program(version), "package/README": b"claude"}
    return agent_packages.tarball(tmp_path / f"claude-{version}.tgz", dict(content))


def install(store: provision.Store, source: Path, **fields: Any) -> copies.Found:
    return store.install(provision.Wish("claude-code", source, **fields))[0]


def in_tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


def sources(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "directory/bin").mkdir(parents=True)
    (tmp_path / "directory/bin/claude").write_bytes(PROGRAM)
    (tmp_path / "some-name").write_bytes(PROGRAM)
    return {
        "wheel": agent_packages.wheel(tmp_path / "x.whl", {"sdk/_bundled/claude": PROGRAM, "sdk/a.py": b"x"}),
        "tarball": package(tmp_path),
        "directory": tmp_path / "directory",
        "program": tmp_path / "some-name",
    }


@pytest.fixture(params=[0o022, 0o077], ids=["umask-022", "umask-077"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kind", ["wheel", "tarball", "directory", "program"])
def test_copy_is_made_of(kind: str, store: provision.Store, tmp_path: Path) -> None:
    source = sources(tmp_path)[kind]
    found = install(store, source)
    assert (found.name, found.is_default, found.program.name) == ("claude-code@2.1.3", True, "claude")
    assert found.program.read_bytes() == PROGRAM
    assert provision.is_intact(found)
    expected = "" if source.is_dir() else hashlib.sha256(source.read_bytes()).hexdigest()
    assert found.copy.source_sha256 == expected
    # Nobody changes it any more.
    places = [found.path.parents[1], found.path.parent, found.path, *found.path.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in places if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in places if path.is_file()} <= {0o444, 0o555}
    assert found.program.stat().st_mode & 0o777 == 0o555
    assert copies.read(found.path.parents[1]) == [found]


def test_again_changes_nothing(store: provision.Store, layout: paths.Layout, tmp_path: Path) -> None:
    wish = provision.Wish("claude-code", package(tmp_path))
    first, is_new = store.install(wish)
    before = in_tree(layout.copies_directory)
    assert (is_new, store.install(wish)) == (True, (first, False))
    assert in_tree(layout.copies_directory) == before
    assert not list(layout.copies_directory.glob(".new*"))


def test_version_never_changes(store: provision.Store, tmp_path: Path) -> None:
    install(store, package(tmp_path))
    other = agent_packages.tarball(tmp_path / "other.tgz", {"package/claude": PROGRAM + b"# other\n"})
    with pytest.raises(errors.AgentinaError, match="UNSUITABLE") as refused:
        install(store, other)
    assert "other files" in str(refused.value.message)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": "2.1.4"}, "says that it is 2.1.3, not 2.1.4"),
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"program": "package/nothing"}, "no file"),
        ({"program": "../../../bin/sh"}, "no name"),
    ],
)
def test_what_is_not_as_expected_is_refused(  # noqa: PLR0917 - fixtures
    fields: dict[str, str], words: str, store: provision.Store, layout: paths.Layout, tmp_path: Path
) -> None:
    with pytest.raises(errors.AgentinaError) as refused:
        install(store, package(tmp_path), **fields)
    assert refused.value.entry is errors.RUNNER_COPY_UNSUITABLE
    assert words in refused.value.message
    assert in_tree(layout.copies_directory) in ([], [".lock"])


def link(kind: bytes) -> tarfile.TarInfo:
    made = tarfile.TarInfo()
    made.type, made.linkname = kind, "/etc/passwd"
    return made


@pytest.mark.parametrize(
    "content",
    [
        {"../claude": PROGRAM},
        {"/tmp/claude": PROGRAM},
        {"a/./claude": PROGRAM},
        {"claude": PROGRAM, "link": link(tarfile.SYMTYPE)},
        {"claude": PROGRAM, "link": link(tarfile.LNKTYPE)},
        {"claude": PROGRAM, "pipe": link(tarfile.FIFOTYPE)},
        {"claude": PROGRAM, "./claude": PROGRAM},
        {"a/claude": PROGRAM, "b/claude": PROGRAM},
        {"other": PROGRAM},
        {"claude": b"#!/bin/sh\necho no version\n"},
        {"claude": b"#!/bin/sh\necho 1.2.3; exit 1\n"},
        {"claude": b"\x7fELF of another machine"},
        {"\nclaude": PROGRAM},
    ],
)
def test_hostile_or_useless_archive_is_refused(
    content: dict[str, Any], store: provision.Store, layout: paths.Layout, tmp_path: Path
) -> None:
    with pytest.raises(errors.AgentinaError) as refused:
        install(store, agent_packages.tarball(tmp_path / "x.tgz", content))
    assert refused.value.entry is errors.RUNNER_COPY_UNSUITABLE
    assert in_tree(layout.copies_directory) == [".lock"]


@pytest.mark.parametrize(("at", "value"), [(0, 1), (2, 99)], ids=["wants a password", "packed in an unknown way"])
def test_archive_that_cannot_be_read_is_refused(at: int, value: int, store: provision.Store, tmp_path: Path) -> None:
    wheel = agent_packages.wheel(tmp_path / "x.whl", {"claude": PROGRAM})
    content = bytearray(wheel.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags + at] = value
    wheel.write_bytes(content)
    with pytest.raises(errors.AgentinaError) as caught:
        install(store, wheel)
    assert caught.value.entry is errors.RUNNER_COPY_UNSUITABLE


@pytest.mark.parametrize("cut", [10, 200, -3000])
def test_damaged_archive_is_refused(cut: int, store: provision.Store, tmp_path: Path) -> None:
    content = {"package/noise": os.urandom(5000), "package/claude": PROGRAM, "package/more": os.urandom(5000)}
    source = agent_packages.tarball(tmp_path / "x.tgz", dict(content))
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(errors.AgentinaError, match="UNSUITABLE"):
        install(store, source)


def test_link_in_a_directory_is_refused(store: provision.Store, tmp_path: Path) -> None:
    directory = sources(tmp_path)["directory"]
    (directory / "link").symlink_to("/etc")
    with pytest.raises(errors.AgentinaError, match="UNSUITABLE"):
        install(store, directory)


def test_version_of_a_program_that_does_not_say_it(store: provision.Store, tmp_path: Path) -> None:
    silent = agent_packages.tarball(tmp_path / "x.tgz", {"claude": b"#!/bin/sh\n"})
    assert install(store, silent, version="7").name == "claude-code@7"
    with pytest.raises(errors.AgentinaError, match="NAME_INVALID"):
        install(store, silent, version="../x")
    with pytest.raises(errors.AgentinaError, match="UNSUITABLE"):
        install(store, silent, version="default")


def test_newest_and_needed_copies_stay(store: provision.Store, layout: paths.Layout, tmp_path: Path) -> None:
    take(layout, "claude-code@1.0.1")
    install(store, package(tmp_path, "1.0.0"))
    for number in range(1, 6):
        install(store, package(tmp_path, f"1.0.{number}"), is_default=False)
    # The default, one that a task has, and the newest three.
    versions = [found.copy.version for found in copies.read(layout.copies_directory)]
    assert versions == ["1.0.0", "1.0.1", "1.0.3", "1.0.4", "1.0.5"]


def take(layout: paths.Layout, name: str) -> Path:
    """What a daemon leaves of a task that has the copy."""
    task = layout.state_directory / "default/tasks/job_0123456789abcdef.1"
    task.mkdir(parents=True)
    files.write_atomic(task / "runner.json", b'{"runner":"%s"}' % name.encode())
    return task


def test_removal_spares_what_is_needed(store: provision.Store, layout: paths.Layout, tmp_path: Path) -> None:
    old, new = install(store, package(tmp_path, "1.0.0")), install(store, package(tmp_path, "2.0.0"))
    with pytest.raises(errors.AgentinaError, match="BUSY") as refused:
        store.remove("claude-code", "2.0.0")
    assert "default" in refused.value.message
    task = take(layout, "claude-code@1.0.0")
    with pytest.raises(errors.AgentinaError, match="BUSY") as refused:
        store.remove("claude-code", "1.0.0")
    assert task.name in refused.value.message
    assert copies.check(old.path).program == old.program
    (task / "runner.json").unlink()
    store.use("claude-code", "1.0.0")
    store.remove("claude-code", "2.0.0")
    assert not new.path.exists()
    store.remove("claude-code", "1.0.0")
    assert in_tree(layout.copies_directory) == [".lock"]
    with pytest.raises(errors.AgentinaError, match="RUNNER_MISSING"):
        store.remove("claude-code", "1.0.0")


def test_interrupted_removal_is_made_good(store: provision.Store, tmp_path: Path) -> None:
    source = package(tmp_path)
    found = install(store, source)
    (found.path / copies.DESCRIPTION).rename(found.path / f".{copies.DESCRIPTION}")
    (found.path.parents[1] / ".new-0123").mkdir()
    (found.path.parents[1] / ".old-0123").mkdir()
    assert copies.read(found.path.parents[1]) == []
    again = install(store, source)
    assert again.copy.sha256 == found.copy.sha256
    assert provision.is_intact(again)
    assert in_tree(again.path.parents[1])[0] == ".lock"
    assert not list(again.path.parents[1].glob(".[no]*"))


def test_changed_files_are_noticed(store: provision.Store, tmp_path: Path) -> None:
    found = install(store, package(tmp_path))
    found.program.chmod(0o755)
    found.program.write_bytes(PROGRAM + b"evil\n")
    assert not provision.is_intact(found)


def test_one_change_at_a_time(store: provision.Store, layout: paths.Layout, tmp_path: Path) -> None:
    found = install(store, package(tmp_path))
    with files.exclusive_lock(layout.copies_directory / ".lock"), pytest.raises(errors.AgentinaError, match="CONFLICT"):
        store.remove("claude-code", found.copy.version)


def test_tasks_are_found_in_all_instances(layout: paths.Layout) -> None:
    assert choices.in_use(layout.state_directory) == {}
    task = take(layout, "codex@1")
    (task.parent / "job_0000000000000000.1").mkdir()
    damaged = layout.state_directory / "other/tasks/job_1111111111111111.1"
    damaged.mkdir(parents=True)
    (damaged / "runner.json").write_text("{")
    assert choices.in_use(layout.state_directory) == {"codex@1": [task.name]}

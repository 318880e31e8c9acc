from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.system import files
from agentina.updates import releases, versions
from tests.fakes import deadlines, release_trees

MACHINE = release_trees.ARCHITECTURE


@pytest.fixture
def store(tmp_path: Path) -> releases.Store:
    """No process uses it but those a test makes."""
    (tmp_path / "proc").mkdir()
    return releases.Store(tmp_path / "opt", proc=tmp_path / "proc")


def install(store: releases.Store, *versions: str) -> None:
    for version in versions:
        store.unpack(release_trees.archive(store.root.parent / "dist", version), version, architecture=MACHINE)


def refused(entry: errors.Entry, act: Callable[[], object]) -> str:
    with pytest.raises(errors.AgentinaError) as caught:
        act()
    assert caught.value.entry is entry, caught.value
    return caught.value.message


# --- unpacking ---------------------------------------------------------------------------------------------------


def test_archive_becomes_the_release_that_was_built(store: releases.Store) -> None:
    before = os.umask(0o077)
    try:
        install(store, "0.4.0")
    finally:
        os.umask(before)
    path = store.path("0.4.0")
    assert (path / "lib/agentina/__init__.py").read_text() == '__version__ = "0.4.0"\n'
    assert store.check("0.4.0", architecture=MACHINE).version == "0.4.0"
    modes = {each.stat().st_mode & 0o7777 for each in path.rglob("*") if each.is_file()}
    assert modes == {0o644}
    assert {each.stat().st_mode & 0o7777 for each in path.rglob("*") if each.is_dir()} == {0o755}
    assert not list(store.incoming.iterdir())


def test_unpacking_again_changes_nothing(store: releases.Store) -> None:
    install(store, "0.4.0")
    before = (store.path("0.4.0") / "version").stat().st_ino
    install(store, "0.4.0")
    assert (store.path("0.4.0") / "version").stat().st_ino == before


def test_byte_code_made_here_is_no_damage(store: releases.Store) -> None:
    install(store, "0.4.0")
    cache = store.path("0.4.0") / "lib/agentina/__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"code")
    store.check("0.4.0", architecture=MACHINE)


@pytest.mark.parametrize("harm", ["changed", "lost", "added"])
def test_damage_is_found_and_repaired_by_unpacking_again(store: releases.Store, harm: str) -> None:
    install(store, "0.4.0")
    path = store.path("0.4.0") / "lib/other/data.txt"
    if harm == "lost":
        path.unlink()
    else:
        (path if harm == "changed" else path.with_name("new.py")).write_text("y" * 5000)
    refused(errors.RELEASE_UNSUITABLE, lambda: store.check("0.4.0", architecture=MACHINE))
    install(store, "0.4.0")
    store.check("0.4.0", architecture=MACHINE)


def test_damaged_release_that_is_linked_is_not_pulled_from_under_anybody(store: releases.Store) -> None:
    install(store, "0.4.0")
    store.link("default", "0.4.0")
    (store.path("0.4.0") / "notices.txt").unlink()
    refused(errors.STATE_CONFLICT, lambda: install(store, "0.4.0"))


def test_release_for_another_machine_or_python_is_refused(store: releases.Store, tmp_path: Path) -> None:
    foreign = release_trees.archive(tmp_path / "dist", "0.4.0", architecture="arm64")
    said = refused(errors.RELEASE_UNSUITABLE, lambda: store.unpack(foreign, "0.4.0", architecture=MACHINE))
    assert "arm64" in said
    native = release_trees.archive(tmp_path / "other", "0.5.0")
    refused(errors.RELEASE_UNSUITABLE, lambda: store.unpack(native, "0.5.0", architecture=MACHINE, python="cp399"))
    refused(errors.RELEASE_UNSUITABLE, lambda: store.unpack(native, "0.6.0", architecture=MACHINE))
    assert store.installed() == []


def entry(
    name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
    return info, content


@pytest.mark.parametrize(
    "entries",
    [
        [entry("0.4.0/../../escape")],
        [entry("/etc/passwd")],
        [entry("0.4.0//x")],
        [entry("0.4.0/./x")],
        [entry("other/x")],
        [entry("0.4.0/a"), entry("0.4.0/a")],
        [entry("0.4.0/link", kind=tarfile.SYMTYPE, target="/etc"), entry("0.4.0/link/x")],
        [entry("0.4.0/x"), entry("0.4.0/hard", kind=tarfile.LNKTYPE, target="0.4.0/x")],
        [entry("0.4.0/hard", kind=tarfile.LNKTYPE, target="/etc/shadow")],
        [entry("0.4.0/dev", kind=tarfile.CHRTYPE)],
        [entry("0.4.0/fifo", kind=tarfile.FIFOTYPE)],
        [entry("0.4.0/" + "d/" * 20 + "x")],
        [entry("0.4.0/new\nline")],
        [entry("0.4.0/a"), entry("0.4.0/a/b")],
        [entry("0.4.0/release.json", b"{}")],
        [],
    ],
)
def test_hostile_archive_is_refused_and_touches_nothing(
    store: releases.Store, tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.AgentinaError) as caught:
        store.unpack(archive, "0.4.0", architecture=MACHINE)
    assert caught.value.entry in {errors.RELEASE_UNSUITABLE, errors.STATE_UNWRITABLE}
    made = set(tmp_path.rglob("*")) - set(before)
    assert made <= {store.root, store.releases, store.incoming}


def test_bounds_of_an_archive_hold(store: releases.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = release_trees.archive(tmp_path / "dist", "0.4.0")
    with monkeypatch.context() as patch:
        patch.setattr(releases, "MAX_FILES", 3)
        refused(errors.RELEASE_UNSUITABLE, lambda: store.unpack(archive, "0.4.0", architecture=MACHINE))
    with monkeypatch.context() as patch:
        patch.setattr(releases, "MAX_BYTES", 1000)
        refused(errors.RELEASE_UNSUITABLE, lambda: store.unpack(archive, "0.4.0", architecture=MACHINE))
    with monkeypatch.context() as patch:
        patch.setattr(releases, "_RESERVE", 1 << 60)
        refused(errors.DISK_FULL, lambda: store.unpack(archive, "0.4.0", architecture=MACHINE))
    assert store.installed() == []


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.9])
def test_truncated_archive_is_refused(store: releases.Store, tmp_path: Path, cut: float) -> None:
    archive = release_trees.archive(tmp_path / "dist", "0.4.0")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * cut)])
    refused(errors.RELEASE_UNSUITABLE, lambda: store.unpack(archive, "0.4.0", architecture=MACHINE))
    assert not list(store.incoming.iterdir())


class PowerCutError(BaseException):
    """Nothing runs after it."""


def test_power_cut_while_unpacking_leaves_no_half_release(
    store: releases.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each single file: what has its name is whole, and what has not is swept away."""
    archive = release_trees.archive(tmp_path / "dist", "0.4.0")
    place, cuts = releases._place, 0
    for number in range(100):
        left = number

        def falling(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
            nonlocal left
            if left == 0:
                raise PowerCutError
            left -= 1
            place(tar, info, path)

        with monkeypatch.context() as patch:
            patch.setattr(releases, "_place", falling)
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            try:
                store.unpack(archive, "0.4.0", architecture=MACHINE)
            except PowerCutError:
                cuts += 1
                assert store.installed() == []
                assert list(store.incoming.iterdir())
                continue
        break
    assert cuts >= 8
    install(store, "0.5.0")
    assert store.installed() == ["0.5.0", "0.4.0"]
    assert not list(store.incoming.iterdir())


# --- links -------------------------------------------------------------------------------------------------------


def test_links_are_relative_and_move_at_once(store: releases.Store) -> None:
    install(store, "0.4.0", "0.5.0")
    assert store.linked("default") is None
    for version in ("0.4.0", "0.5.0", "0.5.0"):
        store.link("default", version)
        assert store.linked("default") == version
    link = store.root / "instances/default"
    assert str(link.readlink()) == "../releases/0.5.0"
    assert (link / "version").read_text() == "0.5.0\n"
    store.link_previous("default", "0.4.0")
    assert store.previous("default") == "0.4.0"
    store.link("default", None)
    store.link("default", None)
    assert store.linked("default") is None


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden"])
def test_instances_are_named_by_the_rules(store: releases.Store, name: str) -> None:
    refused(errors.NAME_INVALID, lambda: store.link(name, "0.4.0"))


@pytest.mark.parametrize("target", ["/opt/other", "../releases/../x", "../releases/", "0.4.0", "../releases/0.4.0/lib"])
def test_link_that_is_not_understood_stops_every_clean_up(store: releases.Store, target: str) -> None:
    install(store, *(f"0.{number}.0" for number in range(6)))
    (store.root / "instances").mkdir()
    (store.root / "instances/strange").symlink_to(target)
    refused(errors.STATE_CONFLICT, lambda: store.clean(packaged=None))
    refused(errors.STATE_CONFLICT, lambda: store.linked("strange"))
    assert len(store.installed()) == 6
    assert store.linked("default") is None, "one instance's trouble is not another's"


# --- clean-up ----------------------------------------------------------------------------------------------------

ALL = [f"0.{number}.0" for number in range(9)]


def test_newest_three_stay_and_older_ones_that_nobody_needs_go(store: releases.Store) -> None:
    install(store, *ALL)
    store.link("default", "0.0.0")
    store.link_previous("default", "0.1.0")
    with store.alone():
        fates = store.clean(packaged="0.2.0", busy=["0.3.0"], pinned=["0.4.0"])
    kept = {fate.name: fate.kept_for for fate in fates if fate.kept_for}
    assert kept == {
        "0.0.0": "linked", "0.1.0": "previous", "0.2.0": "the package's own", "0.3.0": "under way",
        "0.4.0": "pinned by a task", "0.6.0": "one of the newest 3", "0.7.0": "one of the newest 3",
        "0.8.0": "one of the newest 3",
    }  # fmt: skip
    assert store.installed() == sorted(kept, reverse=True)
    assert not list(store.incoming.iterdir())


@pytest.mark.parametrize("what", ["memory", "descriptor", "directory"])
def test_running_release_is_never_deleted(store: releases.Store, what: str) -> None:
    """A real process that uses a file of an old release (Elastic Agent #14699 deleted the running version)."""
    install(store, *ALL)
    path = store.path("0.0.0") / f"lib-{releases.python_tag()}/compiled.so"
    code = {
        "memory": "import mmap; f = open({0!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()",
        "descriptor": "f = open({0!r}, 'rb')",
        "directory": "import os; os.chdir(os.path.dirname({0!r}))",
    }[what].format(str(path))  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    # Only this process: where tests run in a container, root may not look at every other.
    (store.root.parent / f"proc/{process.pid}").symlink_to(f"/proc/{process.pid}")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert "0.0.0" in store.running()
        fates = {fate.name: fate.kept_for for fate in store.clean(packaged=None)}
        assert fates["0.0.0"] == "running"
        assert store.installed()[-1] == "0.0.0"
    finally:
        process.communicate(b"\n", timeout=deadlines.HANG)
    assert {fate.name: fate.kept_for for fate in store.clean(packaged=None)}["0.0.0"] == ""
    assert "0.0.0" not in store.installed()


def test_process_that_cannot_be_looked_at_stops_the_clean_up(store: releases.Store, tmp_path: Path) -> None:
    install(store, *ALL)
    (tmp_path / "proc/1/maps").mkdir(parents=True)  # reading it fails, whoever one is
    refused(errors.STATE_CONFLICT, lambda: store.clean(packaged=None))
    assert len(store.installed()) == len(ALL)


def test_what_is_not_understood_stays(store: releases.Store) -> None:
    install(store, *ALL)
    for name in ("mine", ".hidden", "0.0.0-backup"):
        (store.releases / name).mkdir()
    (store.releases / "0.0.0/release.json").write_text("{}")
    (store.releases / "0.0.1").symlink_to("0.8.0")
    (store.releases / "file").write_text("x")
    fates = {fate.name: fate.kept_for for fate in store.clean(packaged=None)}
    for name in ("mine", ".hidden", "0.0.0-backup", "0.0.0", "0.0.1", "file"):
        assert fates[name] == "not understood"
        assert os.path.lexists(store.releases / name)


def test_power_cut_while_deleting_leaves_whole_releases_only(
    store: releases.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(store, *ALL)

    def cut(*_: object, **__: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(PowerCutError):
            store.clean(packaged=None)
    for version in store.installed():
        store.check(version, architecture=MACHINE)
    store.clean(packaged=None)
    assert store.installed() == ["0.8.0", "0.7.0", "0.6.0"]
    assert not list(store.incoming.iterdir())


def test_two_do_not_clean_at_once(store: releases.Store) -> None:
    store.root.mkdir()
    with files.exclusive_lock(store.root / "lock"), contextlib.ExitStack() as stack:
        refused(errors.STATE_CONFLICT, lambda: stack.enter_context(store.alone()))


NAMES = st.sampled_from([f"{major}.{minor}.0" for major in range(3) for minor in range(4)])


@given(
    st.sets(NAMES), st.sets(NAMES), st.dictionaries(st.sampled_from(["linked", "running", "pinned"]), st.sets(NAMES))
)
def test_nothing_needed_ever_goes(entries: set[str], understood: set[str], reasons: dict[str, set[str]]) -> None:
    understood &= entries
    fates = releases.fates(sorted(entries), understood=understood, reasons=dict(reasons))
    gone = {fate.name for fate in fates if not fate.kept_for}
    assert gone <= understood
    for kept in reasons.values():
        assert not gone & kept
    newest = sorted(understood, key=versions.order)[-releases.KEEP :]
    assert not gone & {*newest}
    assert gone == understood - {*newest} - set().union(*reasons.values())

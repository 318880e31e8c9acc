from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentina.system import files
from agentina_base import launcher, staging


def payload(root: Path, version: str, digest: str) -> Path:
    path = root / "usr/release"
    (path / "lib/agentina").mkdir(parents=True, exist_ok=True)
    (path / f"lib-{launcher.python_tag()}").mkdir(exist_ok=True)
    for name, content in {
        "version": version,
        "digest": digest,
        "lib/agentina/__init__.py": f"D = {digest!r}\n",
    }.items():
        # As dpkg does it: a new file takes the name.
        (path / name).unlink(missing_ok=True)
        (path / name).write_text(content)
    return path


def test_the_release_is_put_under_its_version(tmp_path: Path) -> None:
    source = payload(tmp_path, "1.0", "a")
    target = staging.stage(source, tmp_path / "opt/releases")
    assert target == tmp_path / "opt/releases/1.0"
    assert (target / "lib/agentina/__init__.py").samefile(source / "lib/agentina/__init__.py")


def test_an_upgrade_of_the_package_leaves_the_old_release_to_what_runs(tmp_path: Path) -> None:
    releases = tmp_path / "opt/releases"
    old = staging.stage(payload(tmp_path, "1.0", "a"), releases)
    staging.stage(payload(tmp_path, "2.0", "b"), releases)
    assert (old / "lib/agentina/__init__.py").read_text() == "D = 'a'\n"
    assert (releases / "2.0/lib/agentina/__init__.py").read_text() == "D = 'b'\n"


def test_staging_again_changes_nothing(tmp_path: Path) -> None:
    source = payload(tmp_path, "1.0", "a")
    target = staging.stage(source, tmp_path / "opt/releases")
    before = target.stat()
    assert staging.stage(source, tmp_path / "opt/releases").stat() == before


def test_the_same_version_with_other_content_replaces_it(tmp_path: Path) -> None:
    releases = tmp_path / "opt/releases"
    staging.stage(payload(tmp_path, "1.0", "a"), releases)
    target = staging.stage(payload(tmp_path, "1.0", "b"), releases)
    assert (target / "lib/agentina/__init__.py").read_text() == "D = 'b'\n"
    assert [path.name for path in releases.iterdir()] == ["1.0"]


@pytest.mark.parametrize("left", [".new-1.0", ".old-1.0"])
def test_what_an_interrupted_run_left_is_removed(tmp_path: Path, left: str) -> None:
    releases = tmp_path / "opt/releases"
    (releases / left / "lib").mkdir(parents=True)
    target = staging.stage(payload(tmp_path, "1.0", "a"), releases)
    assert [path.name for path in releases.iterdir()] == ["1.0"]
    assert (target / "digest").exists()


def test_other_file_systems_get_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    target = staging.stage(payload(tmp_path, "1.0", "a"), tmp_path / "opt/releases")
    assert (target / "lib/agentina/__init__.py").read_text() == "D = 'a'\n"


def test_byte_code_is_compiled_for_this_python(tmp_path: Path) -> None:
    target = staging.stage(payload(tmp_path, "1.0", "a"), tmp_path / "opt/releases")
    staging.compile_release(target, tmp_path / "base")
    assert list((target / "lib/agentina/__pycache__").iterdir())


def test_releases_go_when_nobody_needs_them(tmp_path: Path) -> None:
    for version in ("1.0", "1.1", "1.2", "1.3", "1.10", "2.0", "3.0"):
        (tmp_path / version).mkdir()
    (tmp_path / ".new-4.0").mkdir()
    gone = staging.removable(tmp_path, linked={"1.0"}, packaged="1.1", used={"1.2"})
    assert gone == ["1.3"]


def test_what_an_instance_ran_before_stays_and_an_update_is_not_disturbed(tmp_path: Path) -> None:
    versions = [f"1.{number}" for number in range(6)]
    for version in versions:
        (tmp_path / "releases" / version).mkdir(parents=True)
    for name, version in (("instances", "1.0"), ("previous", "1.1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "default").symlink_to(f"../releases/{version}")
    with files.exclusive_lock(tmp_path / "lock"):
        staging.clean(tmp_path, packaged="1.5")
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == versions
    staging.clean(tmp_path, packaged="1.5")
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["1.0", "1.1", "1.3", "1.4", "1.5"]


def test_links_say_what_instances_are_bound_to(tmp_path: Path) -> None:
    (tmp_path / "default").symlink_to("../releases/1.0")
    (tmp_path / "other").symlink_to("../releases/1.1")
    assert staging.linked(tmp_path) == {"1.0", "1.1"}
    assert staging.linked(tmp_path / "none") == set()


def test_a_release_is_in_use_while_a_process_has_its_library_in_memory(tmp_path: Path) -> None:
    library = tmp_path / "releases/1.7/library.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(bytes(4096))
    code = (
        f"import mmap; file = open({str(library)!r}, 'r+b'); memory = mmap.mmap(file.fileno(), 0)\n"
        "print('mapped', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert staging.in_use(tmp_path) == {"1.7"}
        library.unlink()
        assert staging.in_use(tmp_path) == {"1.7"}
        process.communicate(b"\n")
    assert staging.in_use(tmp_path) == set()

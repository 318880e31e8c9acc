"""Delegated cgroups: found only where they are ours, limited, emptied. Real ones where this host lets us."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agentina.system import cgroups


def hierarchy(tmp_path: Path, *, own: str, controllers: str = "memory pids cpu", inside: str = "") -> tuple[Path, Path]:
    """A made-up procfs and cgroup file system in which this process is in ``own``."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(f"5:cpu:/x\n0::{own}\n")
    path = root / own.lstrip("/")
    path.mkdir(parents=True)
    for place in {root, path}:
        (place / "cgroup.controllers").write_text(controllers)
        (place / "cgroup.subtree_control").write_text("")
        (place / "cgroup.procs").write_text(inside)
    (path / "cgroup.type").write_text("domain\n")
    return proc, root


def test_no_cgroup_file_system(tmp_path: Path) -> None:
    assert cgroups.find(proc=tmp_path, root=tmp_path) is None


@pytest.mark.parametrize("text", ["", "1:cpu:/x\n", "0::/../outside\n"])
def test_no_place_of_our_own(tmp_path: Path, text: str) -> None:
    proc, root = hierarchy(tmp_path, own="/a")
    (proc / "self/cgroup").write_text(text)
    assert cgroups.find(proc=proc, root=root) is None


def test_cgroup_of_a_host_that_systemd_runs_needs_delegation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, root = hierarchy(tmp_path, own="/service")
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) == "/run/systemd/system" or real(self))
    assert cgroups.find(proc=proc, root=root) is None


def test_others_in_our_cgroup_are_not_moved(tmp_path: Path) -> None:
    proc, root = hierarchy(tmp_path, own="/shared", inside="1\n2\n")
    found = cgroups.find(proc=proc, root=root)
    assert found == cgroups.Delegation(path=root / "shared", controllers=frozenset())
    assert not (root / "shared/agentina-daemon").exists()


def real_delegation() -> cgroups.Delegation | None:
    found = cgroups.find()
    if found is None:
        return None
    made = cgroups.make(found, "probe", memory_bytes=1 << 30, pids=10, cpus=1)
    if made is not None:
        cgroups.discard(made)
    return found if made is not None else None


DELEGATION = real_delegation()


@pytest.mark.skipif(DELEGATION is None, reason="no cgroup is delegated to this process")
def test_task_cgroup_is_made_killed_and_removed() -> None:
    assert DELEGATION is not None
    path = cgroups.make(DELEGATION, "test.1", memory_bytes=1 << 30, pids=10, cpus=0.5)
    assert path == cgroups.task_path(DELEGATION, "test.1")
    assert cgroups.make(DELEGATION, "test.1", memory_bytes=1, pids=1, cpus=1) is None
    child = subprocess.Popen(["sleep", "1000"])
    (path / "cgroup.procs").write_text(str(child.pid))
    cgroups.remove_empty(DELEGATION)
    assert path.is_dir()
    cgroups.kill(path)
    assert child.wait() == -9
    cgroups.remove_empty(DELEGATION)
    assert not path.exists()

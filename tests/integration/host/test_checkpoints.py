"""Checkpoints of real workspaces: packed in one place, put into another, and the same in both."""
# Setting the stage blocks the loop, on purpose and for milliseconds.

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agentina import errors
from agentina.host.trees import checkpoints, packing, workspaces
from agentina.protocol import jobs
from tests.integration.host.test_workspaces import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "origin")


def job(repository: Repository) -> jobs.JobSpec:
    document = {"name": "t", "payload": {"argv": ["true"]}, "workspace": {"git": str(repository.path)}}
    return jobs.parse_job(document)


def git(workspace: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=workspace, check=True, capture_output=True)
    return done.stdout.decode()


def contents(directory: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(directory)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if (path.is_file() or path.is_symlink()) and ".git" not in path.relative_to(directory).parts
    }


async def packed(
    directory: Path,
    prepared: workspaces.Prepared,
    *,
    ignored: tuple[str, ...] = (),
    limit: int = 1 << 24,
    slot: packing.Slot | None = None,
) -> checkpoints.Taken:
    manifest = checkpoints.Manifest(task_id="job-1.1", runner="codex", commit=prepared.commit, session_id="s1")
    source = checkpoints.Source(
        directory=directory, manifest=manifest, session=directory / "sessions", mirror=prepared.mirror,
        ignored=list(ignored), limit=limit, slot=slot,
    )  # fmt: skip
    return await checkpoints.take(source, checkpoints.next_number(directory))


async def test_a_workspace_goes_on_as_it_was(tmp_path: Path, repository: Repository) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sessions/2026").mkdir(parents=True)
    there.mkdir()
    (here / "sessions/2026/rollout.jsonl").write_text('{"a":1}\n{"ha')
    prepared = await workspaces.Workspaces(tmp_path / "cache").prepare(job(repository), here)
    workspace = prepared.path
    # Committed, staged, changed, new, deleted, moved, ignored; a mode, a link, a name that is no UTF-8.
    git(workspace, "checkout", "-q", "-b", "fix")
    (workspace / "committed.txt").write_text("committed\n")
    git(workspace, "add", "committed.txt")
    git(workspace, "commit", "-q", "-m", "work")
    (workspace / "staged.txt").write_text("staged\n")
    git(workspace, "add", "staged.txt")
    (workspace / "src/app.py").write_bytes(b"print('two')\n")
    (workspace / "picture.bin").write_bytes(bytes(reversed(range(256))))
    (workspace / "new\n dir").mkdir()
    (workspace / "new\n dir/file").write_text("new\n")
    (workspace / os.fsdecode(b"caf\xe9")).write_text("latin\n")
    (workspace / "old.txt").unlink()
    (workspace / "moved.txt").rename(workspace / "src/moved.txt")
    (workspace / "run.sh").chmod(0o755)
    (workspace / "link").symlink_to("src/app.py")
    (workspace / "build").mkdir()
    (workspace / "build/cache").write_text("wanted\n")
    (workspace / "debug.log").write_text("not wanted\n")
    taken = await packed(here, prepared, ignored=("build/",))
    assert taken.left_out == []
    assert checkpoints.read_manifest(taken.path).session_id == "s1"
    # On another host: another mirror, another path.
    again = await workspaces.Workspaces(tmp_path / "other-cache").prepare(job(repository), there)
    checkpoints.restore(taken.path, again.path, there / "sessions", limit=1 << 24)
    (workspace / "debug.log").unlink()
    assert contents(again.path) == contents(workspace)
    assert os.access(again.path / "run.sh", os.X_OK)
    for arguments in (["status", "--porcelain"], ["log", "--format=%H"], ["branch"], ["diff", "--cached"], ["diff"]):
        assert git(again.path, *arguments) == git(workspace, *arguments)
    git(again.path, "fsck", "--strict")
    assert (there / "sessions/2026/rollout.jsonl").read_text() == '{"a":1}\n'


async def test_what_is_too_large_leaves_nothing(tmp_path: Path, repository: Repository) -> None:
    here = tmp_path / "here"
    (here / "sessions").mkdir(parents=True)
    prepared = await workspaces.Workspaces(tmp_path / "cache").prepare(job(repository), here)
    (prepared.path / "large").write_bytes(bytes(1 << 20))
    with pytest.raises(errors.AgentinaError) as caught:
        await packed(here, prepared, limit=1 << 20)
    assert caught.value.code == "CHECKPOINT_FAILED"
    assert list((here / checkpoints.DIRECTORY).iterdir()) == []
    (prepared.path / "large").unlink()
    assert (await packed(here, prepared, limit=1 << 20)).artifact.name == "checkpoint-000001.tar"
    assert (await packed(here, prepared, limit=1 << 20)).artifact.name == "checkpoint-000002.tar"


async def test_an_agent_that_has_written_nothing_leaves_nothing(tmp_path: Path, repository: Repository) -> None:
    here = tmp_path / "here"
    here.mkdir()
    prepared = await workspaces.Workspaces(tmp_path / "cache").prepare(job(repository), here)
    with pytest.raises(errors.AgentinaError, match="written nothing of it") as caught:
        await packed(here, prepared)
    assert caught.value.code == "CHECKPOINT_FAILED"
    assert list((here / checkpoints.DIRECTORY).iterdir()) == []


async def test_a_cut_off_archive_is_refused(tmp_path: Path, repository: Repository) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sessions").mkdir(parents=True)
    there.mkdir()
    prepared = await workspaces.Workspaces(tmp_path / "cache").prepare(job(repository), here)
    (prepared.path / "new").write_text("x" * 5000)
    taken = await packed(here, prepared)
    content = taken.path.read_bytes()
    again = await workspaces.Workspaces(tmp_path / "cache").prepare(job(repository), there)
    for size in (0, 100, 700, len(content) // 2, len(content) - 2048):
        taken.path.write_bytes(content[:size])
        with pytest.raises(errors.AgentinaError) as caught:
            checkpoints.restore(taken.path, again.path, None, limit=1 << 20)
        assert caught.value.code == "CHECKPOINT_FAILED"
    assert not (again.path / "new").exists()

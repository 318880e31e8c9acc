"""Workspaces from real repositories, and what is collected from them: also when the job is hostile."""
# Setting the stage blocks the loop, on purpose and for milliseconds.
# ruff: noqa: ASYNC221

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.host.trees import mirrors, workspaces
from agentina.protocol import jobs


class Repository:
    """A repository with some commits, made by the git on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.write("README.md", b"hello\n")
        self.write("src/app.py", b"print('one')\n")
        self.write("old.txt", b"to be deleted\n")
        self.write("moved.txt", b"to be renamed, with enough text to be recognised\n" * 5)
        self.write("picture.bin", bytes(range(256)) * 4)
        self.write("run.sh", b"#!/bin/sh\necho hi\n")
        self.write(".gitignore", b"*.log\nbuild/\n")
        self.first = self.commit("first")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
        done = subprocess.run(["git", *identity, *arguments], cwd=self.path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def write(self, name: str, content: bytes) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "origin")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    directory = tmp_path / "task"
    directory.mkdir()
    return directory


def job(
    repository: Repository | str | None, ref: str = "HEAD", artifacts: tuple[str, ...] = (), limit: int = 1 << 30
) -> jobs.JobSpec:
    address = str(repository.path) if isinstance(repository, Repository) else repository
    document: dict[str, Any] = {
        "name": "t",
        "payload": {"argv": ["true"]},
        "artifacts": list(artifacts),
        "limits": {"artifacts": limit},
    }
    if address is not None:
        document["workspace"] = {"git": address, "ref": ref}
    return jobs.parse_job(document)


async def changes(made: workspaces.Workspaces, spec: jobs.JobSpec, task: Path, commit: str) -> bytes:
    found = await made.collect(spec, task, commit)
    return b"".join(path.read_bytes() for info, path in found if info.kind == "patch")


def applied(repository: Repository, target: Path, patch: Path, commit: str) -> Path:
    """A fresh clone at ``commit`` with the patch applied."""
    subprocess.run(["git", "clone", "-q", str(repository.path), str(target)], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=target, check=True)
    subprocess.run(["git", "apply", "--index", str(patch)], cwd=target, check=True)
    return target


def content(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a directory but git's: executable bits and content, links as their text."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if ".git" in path.relative_to(directory).parts or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            found[str(path.relative_to(directory))] = (0, os.fsencode(path.readlink()))
        else:
            found[str(path.relative_to(directory))] = (path.stat().st_mode & 0o100, path.read_bytes())
    return found


@pytest.mark.parametrize("ref", ["HEAD", "main", "refs/heads/main", "v1", "commit", "short"])
async def test_workspace_has_the_files_of_the_ref(repository: Repository, cache: Path, task: Path, ref: str) -> None:
    repository.git("tag", "-a", "-m", "x", "v1")
    ref = {"commit": repository.first, "short": repository.first[:10]}.get(ref, ref)
    prepared = await workspaces.Workspaces(cache).prepare(job(repository, ref), task)
    assert prepared.commit == repository.first
    assert content(prepared.path) == content(repository.path)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=prepared.path, check=True, capture_output=True)
    assert status.stdout == b""


async def test_branch_that_moved_is_fetched_and_known_commit_needs_no_repository(
    repository: Repository, cache: Path, task: Path
) -> None:
    made = workspaces.Workspaces(cache)
    assert (await made.prepare(job(repository, "main"), task)).commit == repository.first
    repository.write("README.md", b"changed\n")
    second = repository.commit("second")
    assert (await made.prepare(job(repository, "main"), task)).commit == second
    spec, gone = job(repository, repository.first), repository.path.with_name("gone")
    repository.path.rename(gone)
    prepared = await workspaces.Workspaces(cache).prepare(spec, task)
    assert (prepared.path / "README.md").read_bytes() == b"hello\n"


async def test_rewritten_history_is_followed_and_old_tasks_keep_their_objects(
    repository: Repository, cache: Path, tmp_path: Path
) -> None:
    made = workspaces.Workspaces(cache)
    old, new = tmp_path / "one", tmp_path / "two"
    old.mkdir()
    new.mkdir()
    before = await made.prepare(job(repository, "main"), old)
    repository.git("commit", "-q", "--amend", "-m", "rewritten")
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "-q", "--prune=now")
    after = await made.prepare(job(repository, "main"), new)
    assert after.commit != before.commit
    subprocess.run(["git", "gc", "-q"], cwd=mirror_of(cache), check=True)
    subprocess.run(["git", "fsck"], cwd=before.path, check=True, capture_output=True)
    assert await made.collect(job(repository, "main"), old, before.commit) == []


def only(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def mirror_of(cache: Path) -> Path:
    return next((cache / "mirrors").glob("*.git"))


@pytest.mark.parametrize(
    ("address", "ref"),
    [("/nonexistent/repository", "HEAD"), ("origin", "no-such-branch"), ("origin", "0" * 40), ("origin", "abcdef1")],
)
async def test_what_cannot_be_had_is_said(
    repository: Repository, cache: Path, task: Path, *, address: str, ref: str
) -> None:
    address = str(repository.path) if address == "origin" else address
    with pytest.raises(errors.AgentinaError) as caught:
        await workspaces.Workspaces(cache).prepare(job(address, ref), task)
    assert caught.value.code == "WORKSPACE_FAILED"
    assert not (task / "workspace").exists()


async def test_credentials_in_the_address_are_not_shown(cache: Path, task: Path) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        await workspaces.Workspaces(cache).prepare(job("http://me:hunter22@127.0.0.1:9/x.git"), task)
    assert "hunter22" not in f"{caught.value} {caught.value.context} {list((cache / 'mirrors').iterdir())}"


async def test_transport_that_runs_a_command_is_refused(cache: Path, task: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    spec = job("https://example.org/x")
    spec = msgspec.structs.replace(spec, workspace=jobs.Workspace(git=f"ext::sh -c touch% {proof}"))
    with pytest.raises(errors.AgentinaError):
        await workspaces.Workspaces(cache).prepare(spec, task)
    assert not proof.exists()


async def test_many_tasks_at_once_share_one_mirror(repository: Repository, cache: Path, tmp_path: Path) -> None:
    instances = [workspaces.Workspaces(cache), workspaces.Workspaces(cache)]
    directories = [tmp_path / f"task{number}" for number in range(8)]
    for directory in directories:
        directory.mkdir()
    prepared = await asyncio.gather(
        *(instances[at % 2].prepare(job(repository, "main"), each) for at, each in enumerate(directories))
    )
    assert {each.commit for each in prepared} == {repository.first}
    assert len(list((cache / "mirrors").glob("*.git"))) == 1


async def test_damaged_mirror_is_set_aside_and_made_anew(repository: Repository, cache: Path, task: Path) -> None:
    made = workspaces.Workspaces(cache)
    await made.prepare(job(repository), task)
    for path in (mirror_of(cache) / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"garbage")
    prepared = await made.prepare(job(repository, repository.first), task)
    assert content(prepared.path) == content(repository.path)
    assert len(list((cache / "mirrors").glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("emptied", ["gitconfig", "mirrors/*.git/config", "mirrors/*.git/HEAD"])
async def test_files_that_a_power_cut_emptied_are_made_anew(
    emptied: str, repository: Repository, cache: Path, task: Path
) -> None:
    """They are not synced, so they may be there without what was in them."""
    await workspaces.Workspaces(cache).prepare(job(repository, "main"), task)
    found = only(cache, emptied)
    before = found.read_bytes()
    found.write_bytes(b"")
    repository.write("new", b"x")
    second = repository.commit("second")
    prepared = await workspaces.Workspaces(cache).prepare(job(repository, "main"), task)
    assert prepared.commit == second
    assert found.read_bytes() == before


async def test_mirror_too_large_to_be_checked_in_time_is_kept(
    repository: Repository, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repository is away for a moment; tasks that run borrow its objects."""
    made = workspaces.Workspaces(cache := tmp_path / "cache")
    borrowing = tmp_path / "borrowing"
    borrowing.mkdir()
    prepared = await made.prepare(job(repository), borrowing)
    slow = tmp_path / "bin/git"
    slow.parent.mkdir()
    real = shutil.which("git")
    slow.write_text(f'#!/bin/sh\ncase " $* " in *" fsck "*) exec sleep 100 ;; esac\nexec {real} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(mirrors.Mirror._git, "__kwdefaults__", {"lock": None, "seconds": 2.0})
    repository.path.rename(tmp_path / "away")
    with pytest.raises(errors.AgentinaError) as caught:
        await made.prepare(job(repository), task)
    assert caught.value.entry is errors.WORKSPACE_FAILED
    subprocess.run([str(real), "status"], cwd=prepared.path, check=True, capture_output=True)
    (tmp_path / "away").rename(repository.path)
    assert (await made.prepare(job(repository), task)).mirror == prepared.mirror
    assert [path.name for path in only(cache, "mirrors").glob("*damaged*")] == []


async def test_few_refs_of_a_mirror_are_remembered(
    repository: Repository, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_MOST_REFS", 2)
    mirror = mirrors.Mirror(cache, str(repository.path))
    for name in ("one", "two", "three", "two"):
        repository.git("branch", "-f", name)
        assert await mirror.commit_of(name) == repository.first
    assert list(mirror._fetched) == ["three", "two"]


async def test_missing_blob_in_the_mirror_is_noticed(repository: Repository, cache: Path, task: Path) -> None:
    made = workspaces.Workspaces(cache)
    await made.prepare(job(repository), task)
    mirror = mirror_of(cache)
    unpack = "mv objects/pack/*.pack . && git unpack-objects -q < *.pack; rm -f *.pack objects/pack/*"
    subprocess.run(["sh", "-c", unpack], cwd=mirror, check=True, stderr=subprocess.DEVNULL)
    blob = repository.git("rev-parse", "HEAD:src/app.py")
    (mirror / "objects" / blob[:2] / blob[2:]).unlink()
    prepared = await made.prepare(job(repository, repository.first), task)
    assert content(prepared.path) == content(repository.path)


async def test_leftovers_of_a_killed_daemon_do_no_harm(repository: Repository, cache: Path, task: Path) -> None:
    await workspaces.Workspaces(cache).prepare(job(repository, "main"), task)
    mirror = mirror_of(cache)
    for name in ("config.lock", "packed-refs.lock", "refs/agentina/x.lock", "shallow.lock"):
        (mirror / name).write_bytes(b"")
    (task / ".workspace.tmp/.git").mkdir(parents=True)
    (task / "workspace/half").write_bytes(b"made")
    (cache / "mirrors/.half.tmp").mkdir()
    repository.write("new", b"x")
    second = repository.commit("second")
    prepared = await workspaces.Workspaces(cache).prepare(job(repository, "main"), task)
    assert prepared.commit == second
    assert content(prepared.path) == content(repository.path)


async def test_hooks_and_filters_of_a_repository_are_not_run(
    repository: Repository, cache: Path, task: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    repository.write(".gitattributes", b"* filter=evil diff=evil text\n")
    repository.git("config", "filter.evil.smudge", f"touch {proof}; cat")
    repository.commit("evil")
    proof.unlink(missing_ok=True)
    for name in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction"):
        hook = repository.path / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {proof}\n")
        hook.chmod(0o755)
    await workspaces.Workspaces(cache).prepare(job(repository), task)
    assert not proof.exists()


async def test_patch_carries_every_kind_of_change(
    repository: Repository, cache: Path, task: Path, tmp_path: Path
) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository)
    prepared = await made.prepare(spec, task)
    workspace = prepared.path
    (workspace / "README.md").write_bytes(b"hello\nworld without end of line")
    (workspace / "old.txt").unlink()
    (workspace / "moved.txt").rename(workspace / "renamed.txt")
    (workspace / "picture.bin").write_bytes(bytes(range(255, -1, -1)) * 40)
    (workspace / "run.sh").chmod(0o755)
    (workspace / "new dir").mkdir()
    for name in ("new dir/sp ace", "-dash", "quote\"'", "tab\there", "line\nbreak", "\udcff\udcfe", "b/ b/x", "é"):
        target = workspace / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(os.fsencode(name))
    (workspace / "link").symlink_to("/etc/passwd")
    (workspace / "empty").write_bytes(b"")
    (workspace / "noise.log").write_bytes(b"ignored")
    os.mkfifo(workspace / "fifo")
    found = await made.collect(spec, task, prepared.commit)
    assert [(info.name, info.kind) for info, _ in found] == [("changes.patch", "patch")]
    (workspace / "fifo").unlink()
    (workspace / "noise.log").unlink()
    clone = applied(repository, tmp_path / "clone", found[0][1], prepared.commit)
    assert content(clone) == content(workspace)
    assert b"passwd" in found[0][1].read_bytes()
    assert b"root:" not in found[0][1].read_bytes()


async def test_committed_work_is_part_of_the_patch(
    repository: Repository, cache: Path, task: Path, tmp_path: Path
) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository)
    prepared = await made.prepare(spec, task)
    (prepared.path / "src/app.py").write_bytes(b"print('two')\n")
    subprocess.run(
        "git -c user.name=J -c user.email=j@example.org commit -qam w && git checkout -qb other && git gc -q",
        shell=True, cwd=prepared.path, check=True,
    )  # fmt: skip
    assert b"+print('two')" in await changes(made, spec, task, prepared.commit)


async def test_unchanged_workspace_leaves_no_patch(repository: Repository, cache: Path, task: Path) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository)
    prepared = await made.prepare(spec, task)
    assert await made.collect(spec, task, prepared.commit) == []
    assert list((task / "artifacts").iterdir()) == []


async def test_collecting_runs_nothing_of_the_job(
    repository: Repository, cache: Path, task: Path, tmp_path: Path
) -> None:
    """Hooks, filters, diff drivers, monitors and configuration that the job planted, also in nested repositories."""
    made, spec = workspaces.Workspaces(cache), job(repository)
    prepared = await made.prepare(spec, task)
    workspace, proof = prepared.path, tmp_path / "proof"
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {proof}\ncat\n")
    script.chmod(0o755)
    nested = workspace / "nested"
    subprocess.run(["git", "init", "-q", str(nested)], check=True)
    identity = ["-c", "user.name=J", "-c", "user.email=j@example.org"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], cwd=nested, check=True)
    for place in (workspace, nested):
        for name in (
            "core.fsmonitor", "core.editor", "core.pager", "core.sshCommand", "diff.external", "diff.evil.textconv",
            "diff.evil.command", "filter.evil.clean", "filter.evil.process", "core.alternateRefsCommand",
        ):  # fmt: skip
            subprocess.run(["git", "config", name, str(script)], cwd=place, check=True)
        subprocess.run(["git", "config", "core.hooksPath", str(tmp_path / "hooks")], cwd=place, check=True)
        (place / ".gitattributes").write_text("* filter=evil diff=evil\n")
        (place / ".git/info/attributes").write_text("* filter=evil diff=evil\n")
    (tmp_path / "hooks").mkdir()
    for name in ("post-index-change", "pre-commit", "reference-transaction", "fsmonitor-watchman"):
        (tmp_path / "hooks" / name).symlink_to(script)
    (workspace / "README.md").write_bytes(b"changed\n")
    proof.unlink(missing_ok=True)
    patch = await changes(made, spec, task, prepared.commit)
    assert not proof.exists()
    assert b"+changed" in patch


async def test_submodules_are_left_alone(repository: Repository, cache: Path, task: Path, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    repository.git("submodule", "--quiet", "add", str(inner.path), "module")
    repository.commit("with a submodule")
    made, spec = workspaces.Workspaces(cache), job(repository)
    prepared = await made.prepare(spec, task)
    proof, module = tmp_path / "proof", prepared.path / "module"
    subprocess.run(["git", "clone", "-q", str(inner.path), str(module)], check=True)
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {proof}\n")
    script.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(script)], cwd=module, check=True)
    (module / "README.md").write_bytes(b"dirty\n")
    (prepared.path / "README.md").write_bytes(b"changed\n")
    patch = await changes(made, spec, task, prepared.commit)
    assert not proof.exists()
    assert b"+changed" in patch
    assert b"module" not in patch


async def test_git_directory_destroyed_by_the_job_does_not_matter(
    repository: Repository, cache: Path, task: Path
) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository)
    prepared = await made.prepare(spec, task)
    subprocess.run(["rm", "-rf", str(prepared.path / ".git")], check=True)
    (prepared.path / "README.md").write_bytes(b"changed\n")
    assert b"+changed" in await changes(made, spec, task, prepared.commit)


async def test_patch_larger_than_allowed_is_an_error(repository: Repository, cache: Path, task: Path) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository, limit=10_000)
    prepared = await made.prepare(spec, task)
    (prepared.path / "large").write_bytes(os.urandom(200_000))
    with pytest.raises(errors.AgentinaError) as caught:
        await made.collect(spec, task, prepared.commit)
    assert caught.value.code == "ARTIFACTS_TOO_LARGE"


async def test_empty_workspace_needs_no_git(cache: Path, task: Path) -> None:
    made, spec = workspaces.Workspaces(cache), job(None, artifacts=("out/**",))
    prepared = await made.prepare(spec, task)
    assert (prepared.commit, list(prepared.path.iterdir())) == ("", [])
    (prepared.path / "out").mkdir()
    (prepared.path / "out/a").write_bytes(b"kept")
    found = await made.collect(spec, task, "")
    assert [(info.name, info.kind, path.read_bytes()) for info, path in found] == [("out/a", "file", b"kept")]


async def test_declared_file_called_like_the_patch_is_kept_beside_it(
    repository: Repository, cache: Path, task: Path
) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository, artifacts=("changes.patch",))
    prepared = await made.prepare(spec, task)
    (prepared.path / "changes.patch").write_bytes(b"mine")
    (prepared.path / "README.md").write_bytes(b"changed\n")
    found = {info.name: info.kind for info, _ in await made.collect(spec, task, prepared.commit)}
    assert found == {"workspace/changes.patch": "file", "changes.patch": "patch"}


@pytest.mark.parametrize(
    "name", ["a.xml", "-x", "#x", "!x", "s p ", "a*b", "[ab]", "back\\slash\\", "line\nend\r", "\udcff", "tab\t"]
)
async def test_new_artifact_is_not_in_the_patch_too(
    repository: Repository, cache: Path, tmp_path: Path, *, task: Path, name: str
) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository, artifacts=("report/**", "README.md"))
    prepared = await made.prepare(spec, task)
    (prepared.path / "report").mkdir()
    (prepared.path / "report" / name).write_bytes(b"a report")
    (prepared.path / "README.md").write_bytes(b"changed\n")
    for other in ("ab", "aXb", "x", "report.xml"):
        (prepared.path / other).write_bytes(b"new and no artifact")
    found = await made.collect(spec, task, prepared.commit)
    assert [info.kind for info, _ in found] == ["file", "file", "patch"]
    clone = applied(repository, tmp_path / "clone", found[-1][1], prepared.commit)
    (prepared.path / "report" / name).unlink()
    # The changed README.md is an artifact and, as a file of the repository, a change as well.
    assert content(clone) == content(prepared.path)


async def test_collecting_again_gives_the_same(repository: Repository, cache: Path, task: Path) -> None:
    made, spec = workspaces.Workspaces(cache), job(repository, artifacts=("*.md",))
    prepared = await made.prepare(spec, task)
    (prepared.path / "README.md").write_bytes(b"changed\n")
    first = await made.collect(spec, task, prepared.commit)
    (task / ".collect.tmp").mkdir()
    assert await made.collect(spec, task, prepared.commit) == first
    assert not (task / ".collect.tmp").exists()


def test_mirror_names_tell_repositories_apart() -> None:
    addresses = ["https://x/a.git", "https://x/a", "https://u:p@x/a.git", "ssh://x/é/%00", "/srv/" + "n" * 500]
    made = [mirrors.mirror_name(address) for address in addresses]
    assert len(set(made)) == len(addresses)
    assert all(len(name) < 100 and "/" not in name and name.isascii() and "p@" not in name for name in made)

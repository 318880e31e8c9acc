"""Workspaces: made from a repository's mirror, and afterwards what a task left: its patch and declared artifacts.

A workspace is a repository of its own that borrows the mirror's objects (``objects/info/alternates``): making one costs
a checkout and nothing else, the job can commit, branch and even ``git gc`` in it, and no state is shared with other
tasks as worktrees would (one ref space, one lock, ``worktree prune``). The mirror never drops an object.

What a task left is read without trusting it: the patch is made with a git directory of ours, never the workspace's own,
so that no hook, filter, diff driver or file system monitor of the job's is run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.host.trees import git, mirrors, snapshots
from agentina.protocol import wire
from agentina.protocol.jobs import JobSpec
from agentina.system import files

#: Name of the patch among the artifacts.
PATCH: Final = "changes.patch"
_CHECKOUT_SECONDS: Final = 600.0
_COLLECT_SECONDS: Final = 600.0
_EMPTY_REPOSITORY: Final = "[core]\n\trepositoryformatversion = {version}\n\tbare = false\n\tlogallrefupdates = true\n"
#: Most repositories whose mirrors are remembered.
_MAX_MIRRORS: Final = 256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A workspace that is ready."""

    path: Path
    #: Commit it was made from; empty without a repository.
    commit: str
    #: The mirror whose objects it borrows; None without a repository.
    mirror: Path | None = None


class Workspaces:
    """Makes workspaces and collects from them, for all tasks of an instance."""

    def __init__(self, cache_directory: Path) -> None:
        self._cache = cache_directory
        self._mirrors: dict[str, mirrors.Mirror] = {}

    async def prepare(self, job: JobSpec, directory: Path) -> Prepared:
        """Make ``workspace`` in the task's directory, anew if there is one from an earlier attempt.

        Raises:
            AgentinaError: ``WORKSPACE_FAILED``; ``DISK_FULL`` and ``STATE_UNWRITABLE`` when the host is at fault.

        """
        workspace = directory / "workspace"
        await asyncio.to_thread(files.remove_tree, workspace)
        address = job.workspace.git
        try:
            if address is None:
                workspace.mkdir(mode=0o700)
                return Prepared(path=workspace, commit="")
            return await self._from_repository(address, job.workspace.ref, workspace)
        except git.GitError as error:
            if "No space left on device" in str(error):
                raise errors.DISK_FULL(path=str(directory)) from error
            shown = git.without_credentials(address or "")
            problem = git.without_credentials(str(error))
            raise errors.WORKSPACE_FAILED(repository=shown, ref=job.workspace.ref, problem=problem) from error
        except OSError as error:
            raise files.from_os_error(error, workspace) from error

    async def mirror_for(self, address: str, commit: str) -> Path:
        """The mirror of the repository at ``address``, with ``commit`` in it.

        Raises:
            git.GitError: It cannot be had.

        """
        mirror = self._mirror(address)
        if not mirror.path.exists():
            await mirror.commit_of(commit)
        return mirror.path

    async def collect(self, job: JobSpec, directory: Path, commit: str) -> list[tuple[wire.ArtifactInfo, Path]]:
        """The patch against ``commit`` and the declared artifacts, copied to ``artifacts`` in the task's directory.

        A new file that is an artifact is left out of the patch: a report is not a change to apply, and would be sent
        twice. A changed file of the repository is in the patch even if it is an artifact too.

        Safe to repeat: an earlier, unfinished collection is thrown away.

        Raises:
            AgentinaError: ``ARTIFACTS_TOO_LARGE``, ``WORKSPACE_FAILED``, ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        target = directory / "artifacts"
        try:
            await asyncio.to_thread(files.remove_tree, target)
            target.mkdir(mode=0o700)
            copies = await self._copies(job, directory / "workspace", target)
            found = _named(copies)
            if commit and job.workspace.git is not None:
                found += await self._patch(job, directory, commit, copies)
            await asyncio.to_thread(files.sync_directory, target)
        except git.GitError as error:
            shown = git.without_credentials(job.workspace.git or "")
            raise errors.WORKSPACE_FAILED(
                repository=shown, ref=commit, problem=f"its changes cannot be read: {error}"
            ) from error
        except OSError as error:
            raise files.from_os_error(error, target) from error
        return found

    # --- making ------------------------------------------------------------------------------------------------------

    def _mirror(self, address: str) -> mirrors.Mirror:
        mirror = self._mirrors.pop(address, None) or mirrors.Mirror(self._cache, address)
        self._mirrors[address] = mirror
        if len(self._mirrors) > _MAX_MIRRORS:
            del self._mirrors[next(iter(self._mirrors))]
        return mirror

    async def _from_repository(self, address: str, ref: str, workspace: Path) -> Prepared:
        mirror = self._mirror(address)
        commit = await mirror.commit_of(ref)
        try:
            await self._check_out(mirror.path, address, commit, workspace)
        except git.GitError:
            if await mirror.is_sound(commit):
                raise
            await mirror.rebuild()
            commit = await mirror.commit_of(commit)
            await self._check_out(mirror.path, address, commit, workspace)
        return Prepared(path=workspace, commit=commit, mirror=mirror.path)

    async def _check_out(self, mirror: Path, address: str, commit: str, workspace: Path) -> None:
        """Fill a directory with another name and rename it when it is complete."""
        temporary = workspace.with_name(".workspace.tmp")
        await asyncio.to_thread(files.remove_tree, temporary)
        repository = temporary / ".git"
        make_repository(repository, mirror, commit, address=address)
        environment = git.sealed(dir=repository, work_tree=temporary)
        # One process: index and files at once. No hooks, no filters: no configuration names any.
        await git.run(
            "read-tree", "--reset", "-u", commit,
            environment=environment, directory=temporary, timeout_seconds=_CHECKOUT_SECONDS,
        )  # fmt: skip
        await asyncio.to_thread(temporary.rename, workspace)

    # --- collecting --------------------------------------------------------------------------------------------------

    async def _copies(self, job: JobSpec, workspace: Path, target: Path) -> list[snapshots.Copied]:
        if not job.artifacts or not _is_directory(workspace):
            return []
        return await asyncio.to_thread(
            snapshots.copy_matches, workspace, job.artifacts, target, limit=job.limits.artifacts
        )

    async def _patch(
        self, job: JobSpec, directory: Path, commit: str, copies: list[snapshots.Copied]
    ) -> list[tuple[wire.ArtifactInfo, Path]]:
        left = job.limits.artifacts - sum(copied.size for copied in copies)
        workspace, path = directory / "workspace", directory / "artifacts" / PATCH
        repository = directory / ".collect.tmp"
        assert job.workspace.git is not None
        if not git.is_commit(commit) or not _is_directory(workspace):
            raise git.GitError("the workspace or its commit is not known any more")
        await asyncio.to_thread(files.remove_tree, repository)
        try:
            make_repository(repository, await self.mirror_for(job.workspace.git, commit), commit)
            _ignore(repository, [copied.source for copied in copies])
            await _Comparison(repository, workspace).write(path, commit, limit=left)
        finally:
            await asyncio.to_thread(files.remove_tree, repository)
        size, sha256 = await asyncio.to_thread(snapshots.hash_file, path)
        if size == 0:
            path.unlink()
            return []
        return [(wire.ArtifactInfo(name=PATCH, size=size, sha256=sha256, kind="patch"), path)]


class _Comparison:
    """Compares a workspace with a commit, through a git directory that is not the workspace's own."""

    def __init__(self, repository: Path, workspace: Path) -> None:
        self._environment = git.sealed(dir=repository, work_tree=workspace, index_file=repository / "index")
        self._directory = workspace

    async def write(self, path: Path, commit: str, *, limit: int) -> None:
        """Write the binary diff of everything, untracked files that are not ignored included, to ``path``."""
        await self._git("read-tree", commit)
        before = await self._without_submodules(commit)
        # What cannot be read (permissions, a device) is left out; everything else is taken.
        await self._git("add", "--all", "--ignore-errors", "--", ".", tolerated=frozenset({0, 1}))
        after = await self._git("write-tree")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            done = await git.run(
                "diff-tree", "-r", "-p", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff",
                "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules=all", before, after, "--",
                environment=self._environment, directory=self._directory, timeout_seconds=_COLLECT_SECONDS,
                output_limit=max(0, limit), output_file=descriptor,
            )  # fmt: skip
            if done.truncated:
                raise errors.ARTIFACTS_TOO_LARGE(found="the patch of the workspace", limit=f"{limit} bytes left for it")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def _without_submodules(self, commit: str) -> str:
        """The tree to compare with. Submodules leave the index: git would run `git status` inside each of them.

        They are checkouts of their own, with a configuration the job may have written; a patch could not carry their
        content anyway.
        """
        listed = await self._git("ls-files", "--stage", "-z", limit=256 << 20)
        modules = [line.partition("\t")[2] for line in listed.split("\0") if line.startswith("160000 ")]
        if not modules:
            return commit
        for at in range(0, len(modules), 100):
            await self._git("update-index", "--force-remove", "--", *modules[at : at + 100])
        return await self._git("write-tree")

    async def _git(self, *arguments: str, tolerated: frozenset[int] = frozenset({0}), limit: int = 1 << 20) -> str:
        done = await git.run(
            *arguments,
            environment=self._environment,
            directory=self._directory,
            timeout_seconds=_COLLECT_SECONDS,
            output_limit=limit,
            tolerated=tolerated,
        )
        return os.fsdecode(done.output).strip("\n")


def expect_loan(workspace: Path) -> None:
    """Have a workspace find the objects it borrows in ``mirror`` beside it, where an executor will put them.

    For executors whose tasks cannot see the mirrors (:meth:`agentina.executors.contract.Executor.place`).
    """
    _alternates(workspace / ".git").write_text("../../../mirror/objects\n", "ascii")


def _alternates(repository: Path) -> Path:
    return repository / "objects/info/alternates"


def _named(copies: list[snapshots.Copied]) -> list[tuple[wire.ArtifactInfo, Path]]:
    """Artifacts of the copies, each with a name of its own."""
    taken = {PATCH}
    found = []
    for copied in copies:
        # The patch has its name first; two unusual paths may be encoded to the same name.
        name = copied.name
        while name in taken:
            name = f"workspace/{name}"
        taken.add(name)
        found.append((wire.ArtifactInfo(name=name, size=copied.size, sha256=copied.sha256), copied.path))
    return found


def _ignore(repository: Path, paths: list[str]) -> None:
    """Have git ignore exactly these paths while they are untracked (gitignore(5)).

    A line ends a pattern, so a path's own line ends are written as ``?``, which matches any character.
    """
    escaped = [re.sub(r"([\\*?\[\] ])", r"\\\1", path) for path in paths]
    lines = ["/" + re.sub(r"[\r\n]", "?", path) + "\n" for path in escaped]
    (repository / "info/exclude").write_bytes(os.fsencode("".join(lines)))


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def make_repository(path: Path, mirror: Path, commit: str, *, address: str = "") -> None:
    """Make a git directory that borrows the objects of ``mirror``; four small files instead of a `git init`."""
    sha256 = len(commit) == 64  # noqa: PLR2004 - hexadecimal digits of a SHA-256
    config = _EMPTY_REPOSITORY.format(version=1 if sha256 else 0)
    if sha256:
        config += "[extensions]\n\tobjectFormat = sha256\n"
    if address and git.without_credentials(address) == address and '"' not in address and "\\" not in address:
        config += f'[remote "origin"]\n\turl = "{address}"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
    path.mkdir(mode=0o700, parents=True)
    for name in ("objects/info", "refs/heads", "info"):
        (path / name).mkdir(parents=True)
    (path / "config").write_text(config, "utf-8")
    (path / "HEAD").write_text(f"{commit}\n", "ascii")
    borrow(path, mirror / "objects")


def borrow(repository: Path, objects: Path) -> None:
    """Have a git directory use the objects in ``objects`` beside its own."""
    _alternates(repository).write_bytes(os.fsencode(objects) + b"\n")

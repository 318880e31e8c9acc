"""Checkpoints of tasks: what is needed to go on elsewhere, packed, and put into a new task's place again.

docs/explanation/checkpoints.md has what is in one, when it is taken, and what happens at each crash.

An archive (:mod:`agentina.host.trees.archives`) has, in this order: ``manifest.json``; ``session/…``, the runner's
files; ``workspace/…``, everything that differs from the checked-out commit, with the repository's own state;
``deleted``, the paths that are not there any more. What is copied from a place where something still runs is taken in
the order in which each part speaks only of what is in the later ones: a session that has seen less than the files show
does a step again, one that has seen more would rely on what is not there; git writes objects before what refers to
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from agentina import errors
from agentina.host.trees import archives, git, packing, snapshots, workspaces
from agentina.inside import packer
from agentina.protocol import wire
from agentina.system import files, tasks

#: The directory for checkpoints in a task's.
DIRECTORY: Final = "checkpoints"
FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DELETED: Final = packing.DELETED
_MAX_MANIFEST: Final = 8 << 20
_GIT_SECONDS: Final = 600.0
#: Most bytes of a list of paths.
_MAX_LIST: Final = 64 << 20
#: Git's view of a slot's workspace, beside the daemon's orders.
_SLOT_REPOSITORY: Final = "checkpoint.git"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifest.json``: what the archive is."""

    format: int = FORMAT
    task_id: str
    runner: str
    #: The commit that the workspace was made from; empty: without a repository.
    commit: str = ""
    #: Of the AI agent's command line; empty: there is none to go on with.
    session_id: str = ""
    #: How far the task said it was, and the paths that it declared as artifacts.
    progress: wire.Progress | None = None
    artifacts: list[str] = []


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A task's place, to be packed."""

    #: The task's directory.
    directory: Path
    manifest: Manifest
    #: Where the files of the runner's sessions are; None: it has none.
    session: Path | None
    #: The mirror that has ``manifest.commit``; None without a repository.
    mirror: Path | None
    #: Patterns (gitignore(5)) of files to take though git ignores them.
    ignored: list[str]
    #: Most bytes of the archive.
    limit: int
    #: Where the task runs, if the daemon cannot see its files; None: it can.
    slot: packing.Slot | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """A checkpoint that is on disk."""

    artifact: wire.ArtifactInfo
    path: Path
    #: What could not be taken, the first names.
    left_out: list[str]


def name_of(number: int) -> str:
    """The name of a task's checkpoint: names sort as their numbers do."""
    return f"checkpoint-{number:06d}.tar"


def drop_before(directory: Path, name: str) -> None:
    """Delete the checkpoints of the task in ``directory`` that are older than ``name``."""
    for path in (directory / DIRECTORY).glob("checkpoint-*.tar"):
        if path.name < name:
            path.unlink(missing_ok=True)


def next_number(directory: Path) -> int:
    """The number of the next checkpoint of the task in ``directory``."""
    found = [path.stem.partition("-")[2] for path in (directory / DIRECTORY).glob("checkpoint-*.tar")]
    return max((int(text) for text in found if text.isdecimal()), default=0) + 1


async def take(source: Source, number: int) -> Taken:
    """Pack a checkpoint, durably. When it is canceled, nothing of it goes on afterwards.

    Raises:
        AgentinaError: ``CHECKPOINT_FAILED``; ``DISK_FULL`` or ``STATE_UNWRITABLE``. Nothing is left then.

    """
    target = source.directory / DIRECTORY
    temporary = target / f".{name_of(number)}.tmp"
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(temporary.unlink, missing_ok=True)
            file = stack.enter_context(temporary.open("w+b"))
            writer = archives.Writer(file, limit=source.limit)
            writer.add_bytes(MANIFEST, msgspec.json.encode(source.manifest))
            if source.slot is None:
                await _pack(writer, source)
            else:
                await _pack_inside(writer, source, source.slot)
            path = target / name_of(number)
            size, sha256 = await tasks.in_thread(_end, writer, file, path)
    except (archives.ArchiveError, git.GitError) as error:
        raise errors.CHECKPOINT_FAILED(problem=str(error)) from error
    except OSError as error:
        raise files.from_os_error(error, temporary) from error
    artifact = wire.ArtifactInfo(name=name_of(number), size=size, sha256=sha256, kind="checkpoint")
    return Taken(artifact=artifact, path=path, left_out=writer.left_out)


def read_manifest(path: Path) -> Manifest:
    """What the archive at ``path`` is. Blocks.

    Raises:
        AgentinaError: ``CHECKPOINT_FAILED``.

    """
    try:
        content = archives.read(path, MANIFEST, limit=_MAX_MANIFEST)
        manifest = msgspec.json.decode(content, type=Manifest)
    except (archives.ArchiveError, msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise errors.CHECKPOINT_FAILED(problem=str(error)) from error
    if manifest.format != FORMAT or (manifest.commit and not git.is_commit(manifest.commit)):
        raise errors.CHECKPOINT_FAILED(problem=f"it has the format {manifest.format}, not {FORMAT}")
    return manifest


def restore(path: Path, workspace: Path, session: Path | None, *, limit: int) -> None:
    """Put what the archive holds over a workspace that was made from its commit. Blocks; repeat it from a new one.

    Args:
        path: The archive.
        workspace: The workspace.
        session: Where the runner's sessions are to be; None: nowhere.
        limit: Most bytes of everything unpacked.

    Raises:
        AgentinaError: ``CHECKPOINT_FAILED``: the workspace is to be thrown away.

    """
    try:
        roots = {"workspace": workspace}
        if session is not None:
            session.mkdir(mode=0o700, parents=True, exist_ok=True)
            roots["session"] = session
        gone = archives.read(path, DELETED, limit=_MAX_LIST).split(b"\0")
        archives.unpack(path, roots, limit=limit)
        archives.delete(workspace, [os.fsdecode(name) for name in gone if name])
    except (archives.ArchiveError, OSError) as error:
        raise errors.CHECKPOINT_FAILED(problem=str(error)) from error


# --- packing ---------------------------------------------------------------------------------------------------------


async def _pack(writer: archives.Writer, source: Source) -> None:
    """Pack what the daemon sees."""
    await tasks.in_thread(_add_session, writer, source)
    changed, deleted = await _differences(source)
    await tasks.in_thread(_add_workspace, writer, source.directory / "workspace", changed)
    writer.add_bytes(DELETED, b"".join(os.fsencode(name) + b"\0" for name in deleted))


async def _pack_inside(writer: archives.Writer, source: Source, slot: packing.Slot) -> None:
    """Have a packer in the task's slot pack what only the task sees."""
    session = source.session if source.manifest.session_id else None
    request = packer.Request(
        session="" if session is None else str(session.relative_to(source.directory)),
        deleted=None, changed=[], environment={},
    )  # fmt: skip
    async with slot.share.turn():
        door = slot.door
        if door.outside is None:
            raise archives.ArchiveError("the task has ended")
        commit = source.manifest.commit
        if not commit or source.mirror is None:
            await packing.fill(writer, slot, request)
            return
        repository = door.outside / _SLOT_REPOSITORY
        try:
            await _make_view(repository, source.mirror, commit, slot.place / "mirror/objects")
            view = door.inside / _SLOT_REPOSITORY
            request["environment"] = git.sealed(
                dir=view, work_tree=slot.place / "workspace", index_file=view / "index"
            )  # fmt: skip
            deleted, *changed = [git.command(*arguments) for arguments in _listings(source.ignored)]
            request["deleted"], request["changed"] = deleted, changed
            await packing.fill(writer, slot, request)
        finally:
            await tasks.in_thread(files.remove_tree, repository)


async def _make_view(repository: Path, mirror: Path, commit: str, objects: Path) -> None:
    """Make a git directory with the commit's index that a slot's user can read: it needs nothing else to compare."""
    await tasks.in_thread(files.remove_tree, repository)
    workspaces.make_repository(repository, mirror, commit)
    environment = git.sealed(dir=repository, index_file=repository / "index")
    await git.run(
        "read-tree", commit, environment=environment, directory=repository, timeout_seconds=_GIT_SECONDS
    )  # fmt: skip
    workspaces.borrow(repository, objects)
    await tasks.in_thread(_let_be_read, repository)


def _let_be_read(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _add_session(writer: archives.Writer, source: Source) -> None:
    if source.session is None or not source.manifest.session_id:
        return
    if not source.session.is_dir():
        raise archives.ArchiveError("the agent has named its session, but written nothing of it")
    with files.opened(source.session, files.DIRECTORY) as root:
        for parts in packer.walk(root):
            # Lines are added at the end; half of one would be damage.
            writer.add("session", root, parts, whole_lines=parts[-1].endswith(".jsonl"))


def _add_workspace(writer: archives.Writer, workspace: Path, changed: list[str] | None) -> None:
    with files.opened(workspace, files.DIRECTORY) as root:
        for parts in packer.walk(root) if changed is None else packer.repository(root):
            writer.add("workspace", root, parts)
        for name in changed or ():
            writer.add("workspace", root, tuple(name.split("/")))


def _end(writer: archives.Writer, file: BinaryIO, path: Path) -> tuple[int, str]:
    writer.close()
    os.fsync(file.fileno())
    temporary = Path(file.name)
    found = snapshots.hash_file(temporary)
    temporary.rename(path)
    files.sync_directory(path.parent)
    return found


def _listings(ignored: list[str]) -> list[list[str]]:
    """The git commands that list the paths which are gone, and then those that list what differs."""
    rules = [f"--exclude={pattern}" for pattern in ignored]
    return [
        ["ls-files", "-z", "--deleted"],
        ["ls-files", "-z", "--modified", "--others", "--exclude-standard"],
        *([["ls-files", "-z", "--others", "--ignored", *rules]] if rules else []),
    ]


async def _differences(source: Source) -> tuple[list[str] | None, list[str]]:
    """Paths that differ from the commit, and those that are not there any more; None: take everything.

    By a git directory of ours, as with the patch (:mod:`agentina.host.trees.workspaces`).
    """
    commit, workspace = source.manifest.commit, source.directory / "workspace"
    if not commit or source.mirror is None:
        return None, []
    repository = source.directory / ".checkpoint.tmp"
    await tasks.in_thread(files.remove_tree, repository)
    try:
        workspaces.make_repository(repository, source.mirror, commit)
        environment = git.sealed(dir=repository, work_tree=workspace, index_file=repository / "index")

        async def listed(*arguments: str) -> list[str]:
            done = await git.run(
                *arguments, environment=environment, directory=workspace,
                timeout_seconds=_GIT_SECONDS, output_limit=_MAX_LIST,
            )  # fmt: skip
            if done.truncated:
                raise git.GitError("more files have changed than fit into a checkpoint")
            return [os.fsdecode(name) for name in done.output.split(b"\0") if name and not name.endswith(b"/")]

        await listed("read-tree", commit)
        deleted, *found = [await listed(*arguments) for arguments in _listings(source.ignored)]
        return sorted(set().union(*found).difference(deleted)), deleted
    finally:
        await tasks.in_thread(files.remove_tree, repository)

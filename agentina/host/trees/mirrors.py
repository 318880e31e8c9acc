"""Bare mirrors of repositories, one a repository and host, shared by all instances and tasks.

A mirror is only ever added to: tasks borrow its objects (alternates), so nothing is pruned or repacked in it. What was
fetched stays referenced below ``refs/agentina/``. A mirror is used by one fetch at a time: flock on a file beside it,
which git inherits, so that a fetch that outlived its killed daemon still holds it. A damaged mirror is renamed and made
anew; one half made has another name and is never seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.host.trees import git
from agentina.system import files

_FETCH_SECONDS: Final = 900.0
_LOCAL_SECONDS: Final = 120.0
_TAIL: Final = 40
#: Refs of a mirror whose last fetch is remembered, for those who wait for the same.
_MOST_REFS: Final = 256
#: How often another process's lock is tried; there is nothing to await.
_LOCK_SECONDS: Final = 0.05


class Mirror:
    """The mirror of one repository."""

    def __init__(self, cache: Path, address: str) -> None:
        name = mirror_name(address)
        self.path = cache / "mirrors" / f"{name}.git"
        self._lock_path = cache / "mirrors" / f"{name}.lock"
        self._configuration = cache / "gitconfig"
        self._address = address
        self._turn = asyncio.Lock()
        #: For each ref: when its last successful fetch began (monotonic), and the commit it found.
        self._fetched: dict[str, tuple[float, str]] = {}

    async def commit_of(self, ref: str) -> str:
        """The commit ``ref`` stands for, present in the mirror. Asks the repository unless ``ref`` is one already here.

        Raises:
            GitError: The repository or the ref cannot be had.

        """
        asked = time.monotonic()
        if git.is_commit(ref) and await self._has(ref):
            return ref
        async with self._turn:
            # Tasks that waited for the same fetch share it: it began after they asked.
            began, commit = self._fetched.get(ref, (0.0, ""))
            if began >= asked:
                return commit
            async with self._locked() as lock:
                began = time.monotonic()
                commit = await self._fetch_repairing(ref, lock)
            self._fetched.pop(ref, None)
            self._fetched[ref] = (began, commit)
            if len(self._fetched) > _MOST_REFS:
                del self._fetched[next(iter(self._fetched))]
            return commit

    async def rebuild(self) -> None:
        """Set the mirror aside as damaged; the next use makes it anew."""
        async with self._turn, self._locked():
            self._set_aside()

    async def is_sound(self, commit: str) -> bool:
        """Whether all objects of ``commit`` can be read, as far as that can be told in time."""
        try:
            await self._git("rev-list", "--objects", "--quiet", "--no-walk", commit, "--")
            await self._git("fsck", "--no-dangling", "--no-reflogs", "--no-progress", commit)
        except git.TooSlowError:
            return True  # running tasks borrow from it: it is not taken from them without need
        except git.GitError:
            return False
        return True

    async def _fetch_repairing(self, ref: str, lock: int) -> str:
        existed = self.path.exists()
        try:
            return await self._fetch(ref, lock)
        except git.GitError:
            if not existed or await self._is_whole():
                raise
        self._set_aside()
        return await self._fetch(ref, lock)

    async def _fetch(self, ref: str, lock: int) -> str:
        if not self.path.exists():
            await self._make()
        self._remove_stale_locks()
        target = f"refs/agentina/{hashlib.sha256(ref.encode()).hexdigest()[:32]}"
        try:
            await self._git("fetch", *_FETCH, "origin", f"+{ref}:{target}", lock=lock, seconds=_FETCH_SECONDS)
        except git.GitError as error:
            # A commit the server does not hand out by itself, an abbreviated one, or no such ref: with everything here
            # git can tell.
            if not re.fullmatch(r"[0-9a-f]{4,64}", ref):
                raise
            everything = ("+refs/heads/*:refs/agentina/heads/*", "+refs/tags/*:refs/agentina/tags/*")
            await self._git("fetch", *_FETCH, "origin", *everything, lock=lock, seconds=_FETCH_SECONDS)
            found = await self._parse(ref)
            if found is None:
                raise git.GitError(f"there is no commit {ref}") from error
            await self._git("update-ref", target, found)
            return found
        found = await self._parse(target)
        if found is None:
            raise git.GitError(f"{ref!r} is not a commit")
        return found

    async def _make(self) -> None:
        """Make an empty mirror; the address is in its configuration (0600), not on command lines."""
        parent = self.path.parent
        temporary = parent / f".{self.path.name}.{secrets.token_hex(4)}.tmp"
        try:
            await git.run(
                "init", "--quiet", "--bare", "--template=", "--", str(temporary),
                environment=git.network(self._configuration), directory=parent, timeout_seconds=_LOCAL_SECONDS,
            )  # fmt: skip
            quoted = self._address.replace("\\", "\\\\").replace('"', '\\"')
            settings = f'[gc]\n\tauto = 0\n\tpruneExpire = never\n[remote "origin"]\n\turl = "{quoted}"\n'
            config = temporary / "config"
            files.write_atomic(config, config.read_bytes() + settings.encode(), durable=False)
            await asyncio.to_thread(temporary.rename, self.path)
        except BaseException:
            await asyncio.to_thread(files.remove_tree, temporary)
            raise

    async def _has(self, commit: str) -> bool:
        return self.path.exists() and await self._parse(commit) == commit

    async def _parse(self, name: str) -> str | None:
        try:
            done = await self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except git.GitError:
            return None
        return done.decode("ascii", "replace").strip()

    async def _is_whole(self) -> bool:
        """Whether the mirror itself is in order: then a failed fetch was the other side's."""
        try:
            await self._git("config", "--local", "--get", "remote.origin.url")
            await self._git("fsck", "--connectivity-only", "--no-dangling", "--no-reflogs", "--no-progress")
        except git.TooSlowError:
            return True  # see above; that of a large repository may take minutes
        except git.GitError:
            return False
        return True

    async def _git(self, *arguments: str, lock: int | None = None, seconds: float = _LOCAL_SECONDS) -> bytes:
        done = await git.run(
            *arguments,
            environment={**git.network(self._configuration), "GIT_DIR": str(self.path)},
            directory=self.path.parent,
            timeout_seconds=seconds,
            pass_descriptors=[] if lock is None else [lock],
        )
        return done.output

    def _set_aside(self) -> None:
        self._fetched.clear()
        if self.path.exists():
            files.set_aside(self.path, stamp=secrets.token_hex(4))

    def _remove_stale_locks(self) -> None:
        """Lock files of a git that was killed: with the flock held, no git works here."""
        for place in (self.path, self.path / "objects/info", *self.path.glob("refs/**/")):
            for left in place.glob("*.lock"):
                left.unlink(missing_ok=True)

    def _configure(self) -> None:
        """Have git's configuration as it has to be: a power cut may have left an empty one."""
        wanted = git.configuration().encode()
        try:
            found = files.read_bounded(self._configuration)
        except (OSError, errors.AgentinaError):
            found = b""
        if found != wanted:
            files.write_atomic(self._configuration, wanted, durable=False)

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[int]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._configure()
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)


_FETCH: Final = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance")


def mirror_name(address: str) -> str:
    """A directory name for the repository at ``address``: unique by hash, readable by its tail, without credentials."""
    tail = re.sub(r"[^A-Za-z0-9._-]+", "-", git.without_credentials(address).rsplit("/", 1)[-1]).strip("-.")
    digest = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{digest[:24]}-{tail.removesuffix('.git')[:_TAIL] or 'repository'}"

"""Slots: where a task is while it runs, and how its files get there and back.

Root runs this (task-prepare, task-exit) on directories that a hostile daemon's user or a hostile task may have filled.
So nothing is reached by a path that somebody else could bend: every step down is an open(2) relative to the directory
before it, with O_NOFOLLOW, from a directory only root can change, and what was opened is checked for type and owner. An
owner is changed through the open file, only from the one expected to the one intended.

Places, for the instance name ``default-S3`` of a unit:

- ``/var/lib/agentina/default/slots/3``: the ticket, written by the daemon, taken here.
- ``/var/lib/agentina/default/tasks/<task id>/``: the daemon's; ``started`` and ``result.json`` are put there.
- ``/var/lib/agentina/.slots/default-S3/task/``: what the task sees as ``/var/lib/agentina/task``: ``workspace`` and
  ``home``, its own for as long as it runs, ``orders``, the daemon's, and ``mirror``, git objects on loan.
- ``/run/agentina-tasks/default-S3/``: ``state`` and ``report``, which the daemon may read; ``problem``; ``passwd`` and
  ``group``, which the task sees as those of the system.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat

from agentina_base import fields

STATE = "/var/lib/agentina"
SLOTS = "/var/lib/agentina/.slots"
#: Where a task sees its own directory.
TASK = "/var/lib/agentina/task"
RUN = "/run/agentina-tasks"
USER = "agentina"
CACHE = "/var/cache"
#: What goes from the task's directory into the slot and back, and is the task's own meanwhile.
MOVED = ("workspace", "home")
#: What is the slot's: the daemon's orders; git objects on loan.
MADE = ("orders", "mirror")
#: What is in the slot's directory below /run while a task runs.
RUN_FILES = ("state", "report", "problem", "passwd", "group")
#: User ids that systemd gives to units with DynamicUser= (systemd.exec(5)).
DYNAMIC_USERS = range(61184, 65520)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_TASK_ID = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.")
# With what the unit adds it names the task's user, of at most 31 characters.
_LONGEST_NAME = 24
_LONGEST_TASK_ID = 64
_MOST_SLOTS = 4
_MAX_FILE = 16 << 20


class ProblemError(Exception):
    """Why a task cannot be started, as a sentence for people."""


class Slot:
    """One slot, by the instance name of its unit."""

    def __init__(self, name: str) -> None:
        instance, mark, number = name.rpartition("-S")
        if not (mark and is_instance(instance) and number.isdecimal() and 0 < len(number) <= _MOST_SLOTS):
            raise ProblemError(f"{name!r} is not <instance>-S<number>")
        self.name = name
        self.instance = instance
        self.number = number
        owner = pwd.getpwnam(USER)
        #: The daemon's user and group.
        self.owner = (owner.pw_uid, owner.pw_gid)

    def open_instance(self) -> int:
        """The state directory of the instance, which must be the daemon's."""
        with_root = os.open(STATE, _DIRECTORY)
        try:
            return open_directory(self.instance, with_root, owner=self.owner[0])
        finally:
            os.close(with_root)

    def open_task(self, task_id: str) -> int:
        """The daemon's directory of a task.

        Raises:
            OSError: There is none.
            ProblemError: It is none of the daemon's.

        """
        if not 0 < len(task_id) <= _LONGEST_TASK_ID or not _TASK_ID.issuperset(task_id) or task_id[0] == ".":
            raise ProblemError("the ticket names no task")
        instance = self.open_instance()
        try:
            tasks = open_directory("tasks", instance, owner=self.owner[0])
        finally:
            os.close(instance)
        try:
            return open_directory(task_id, tasks, owner=self.owner[0])
        finally:
            os.close(tasks)

    def open_run(self) -> int:
        """``/run/agentina-tasks/<slot>``, made if need be; the daemon may look into it, nobody else."""
        top = make_directory("agentina-tasks", "/run", owner=(0, self.owner[1]), mode=0o750)
        try:
            return make_directory(self.name, top, owner=(0, self.owner[1]), mode=0o750)
        finally:
            os.close(top)

    def open_place(self) -> int:
        """What the task sees as its directory, made if need be."""
        top = make_directory(".slots", STATE, owner=(0, 0), mode=0o711)
        try:
            slot = make_directory(self.name, top, owner=(0, self.owner[1]), mode=0o710)
        finally:
            os.close(top)
        try:
            return make_directory("task", slot, owner=(0, 0), mode=0o755)
        finally:
            os.close(slot)


def is_instance(name: str) -> bool:
    """Whether ``name`` may be an instance's (agentina.protocol.names): no slash, no dot, no surprise."""
    return 0 < len(name) <= _LONGEST_NAME and _NAME.issuperset(name)


def open_directory(name: str, above: int, *, owner: int) -> int:
    """Open a directory in the directory ``above``, which must belong to ``owner``."""
    directory = os.open(name, _DIRECTORY, dir_fd=above)
    if os.fstat(directory).st_uid != owner:
        os.close(directory)
        raise ProblemError(f"the directory {name!r} belongs to somebody else")
    return directory


def make_directory(name: str, above: int | str, *, owner: tuple[int, int], mode: int) -> int:
    """Make a directory in ``above``, which only root may change, unless it is there; returns it open."""
    parent = os.open(above, _DIRECTORY) if isinstance(above, str) else os.dup(above)
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
    finally:
        os.close(parent)
    status = os.fstat(directory)
    if (status.st_uid, status.st_gid) != owner:
        os.fchown(directory, *owner)
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(directory, mode)
    return directory


def read_fields(name: str, directory: int, *, owner: int) -> dict[str, list[str]]:
    """Read a file of netstrings that must be ``owner``'s own.

    Raises:
        OSError: There is none.
        ProblemError: It is no such file.

    """
    # O_NONBLOCK: a FIFO put there must not hold root up.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner or status.st_size > _MAX_FILE:
            raise ProblemError(f"the file {name!r} is not as agentina writes it")
        return fields.decode(read_all(descriptor))
    except ValueError as error:
        raise ProblemError(f"the file {name!r} cannot be read: {error}") from error
    finally:
        os.close(descriptor)


def read_all(descriptor: int, offset: int = 0) -> bytes:
    """The content from ``offset`` on, bounded."""
    parts = []
    while part := os.pread(descriptor, min(1 << 20, _MAX_FILE - offset), offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def write_file(name: str, directory: int, content: bytes, *, owner: tuple[int, int], mode: int) -> None:
    """Write a file in a directory of root's, all at once."""
    temporary = f".{name}.tmp"
    remove(temporary, directory)
    descriptor = create(temporary, directory, owner=owner, mode=mode)
    try:
        write_all(descriptor, content)
    finally:
        os.close(descriptor)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def create(name: str, directory: int, *, owner: tuple[int, int], mode: int) -> int:
    """Make a new file and open it for writing.

    Raises:
        FileExistsError: Something has that name.

    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of ``content``."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def remove(name: str, directory: int) -> None:
    """Delete a file, if it is there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return


def change_owner(name: str, directory: int, *, before: int, after: tuple[int, int]) -> None:
    """Give the tree ``name`` in ``directory`` from user ``before`` to ``after``; what is others' stays theirs.

    As deep as it may be, three directories are open at a time. A directory is changed after what is in it, so that its
    new owner cannot enter a tree that is half done.

    Raises:
        ProblemError: Somebody moves its directories about.

    """
    here = open_tree(name, directory)
    if here is None:
        return
    #: For each level: names of directories still to be entered, and the identity to find on the way back.
    levels = [(_change_files(here, before, after), _identity(here))]
    while levels:
        todo, identity = levels[-1]
        if _identity(here) != identity:
            os.close(here)
            raise ProblemError(f"the directories of {name!r} were moved")
        if todo:
            below = open_tree(todo.pop(), here)
            if below is not None:
                os.close(here)
                here = below
                levels.append((_change_files(here, before, after), _identity(here)))
            continue
        levels.pop()
        above = os.open("..", _DIRECTORY, dir_fd=here) if levels else -1
        if os.fstat(here).st_uid == before:
            os.fchown(here, *after)
        os.close(here)
        here = above


def open_tree(name: str, directory: int) -> int | None:
    """Open a directory; None when it is none, or gone."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise


def _change_files(directory: int, before: int, after: tuple[int, int]) -> list[str]:
    """Change the owner of everything in ``directory`` that is no directory; returns the names of those."""
    below = []
    with os.scandir(directory) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            else:
                _change_file(entry.name, directory, before, after)
    return below


def _change_file(name: str, directory: int, before: int, after: tuple[int, int]) -> None:
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(descriptor)
        if status.st_uid == before and not stat.S_ISDIR(status.st_mode):
            # The link in /proc leads to what is open, a symbolic link included, whatever has its name by now.
            os.chown(f"/proc/self/fd/{descriptor}", *after)
    finally:
        os.close(descriptor)


def _identity(directory: int) -> tuple[int, int]:
    status = os.fstat(directory)
    return status.st_dev, status.st_ino


def remove_tree(name: str, directory: int) -> None:
    """Delete whatever ``name`` is in ``directory``; as deep as it may be, two directories are open at a time.

    Raises:
        ProblemError: Somebody moves its directories about.

    """
    here = open_tree(name, directory)
    if here is None:
        remove(name, directory)
        return
    levels = [(name, _remove_files(here), _identity(here))]
    while levels:
        _, todo, identity = levels[-1]
        if _identity(here) != identity:
            os.close(here)
            raise ProblemError(f"the directories of {name!r} were moved")
        if todo:
            part = todo.pop()
            below = open_tree(part, here)
            if below is not None:
                os.close(here)
                here = below
                levels.append((part, _remove_files(here), _identity(here)))
            continue
        part, _, _ = levels.pop()
        above = os.open("..", _DIRECTORY, dir_fd=here) if levels else os.dup(directory)
        os.close(here)
        here = above
        if not levels or _identity(here) == levels[-1][2]:
            os.rmdir(part, dir_fd=here)
    os.close(here)


def _remove_files(directory: int) -> list[str]:
    """Delete everything in ``directory`` that is no directory; returns the names of those."""
    with os.scandir(directory) as listing:
        entries = list(listing)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            remove(entry.name, directory)
    return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def give_back(slot: Slot, task: int | None, place: int, user: int) -> list[str]:
    """Move a task's trees out of its slot to the daemon's directory ``task``; without one they are deleted.

    Returns:
        What could not be given back, as sentences.

    """
    problems = []
    for name in MOVED:
        if task is not None:
            try:
                change_owner(name, place, before=user, after=slot.owner)
                os.rename(name, name, src_dir_fd=place, dst_dir_fd=task)
            except FileNotFoundError:
                continue
            except (OSError, ProblemError) as error:
                problems.append(f"its {name} was lost: {error}")
    for name in (*MOVED, *MADE):
        try:
            remove_tree(name, place)
        except (OSError, ProblemError) as error:
            problems.append(f"{name!r} is left in the slot: {error}")
    return problems

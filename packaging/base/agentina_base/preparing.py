"""task-prepare: gives a slot to the task that its ticket names. Runs as root, in the unit's control group.

In this order, so that a kill at any point leaves something that can be judged (docs/adr/0009):

1. What an earlier task left in the slot is given back: its end was cut off.
2. The ticket is taken by renaming it. The daemon takes tickets back the same way, by deleting them: one of the two has
   it, never both.
3. Room for the result is set aside, so that a full disk is noticed now and not at the end.
4. ``started`` is made in the task's directory, exclusively and durably. It is the task's fence: whatever else goes
   wrong, no task passes this point twice.
5. The workspace goes into the slot and to the task's user; the state is written for task-exit.
   So are the user databases that the task will see: those of the system, and its own user.
6. The supervisor's open files go to PID 1, which hands them over: the launch, the report, the output, and a way to
   tell PID 1 how it is, whose name no task can reach.

What fails before 4 has not started the task; the reason is in ``problem``. What fails after it is a result, which
task-exit writes: systemd runs it then too.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys
import time

from agentina_base import fields, slots

#: Bytes set aside for the result.
_RESULT_ROOM = 16384
_VERSION = "1"
#: Fields of a ticket that the supervisor gets.
_PASSED_ON = (
    "argv", "environment", "verify", "disk_bytes", "output_bytes", "timeout_seconds", "grace_seconds",
    "lease_deadline", "oom", "stop", "stop_grace",
)  # fmt: skip
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_BARRIER_SECONDS = 20


def main() -> None:
    """Prepare the slot in ``sys.argv[1]``; the exit code says whether its supervisor may start."""
    os.umask(0o077)
    try:
        slot = slots.Slot(sys.argv[1])
        run = slot.open_run()
    except (OSError, KeyError, IndexError, slots.ProblemError) as error:
        sys.exit(f"task-prepare: {error}")
    nonce = ""
    try:
        recover(slot, run)
        ticket = take_ticket(slot)
        nonce = _one(ticket, "nonce")
        prepare(slot, run, ticket)
    except (OSError, ValueError, slots.ProblemError) as error:
        problem = f"the host could not prepare it: {error}"
        content = fields.encode([("nonce", nonce), ("problem", problem)])
        slots.write_file("problem", run, content, owner=(0, slot.owner[1]), mode=0o640)
        sys.exit(f"task-prepare: {problem}")


def recover(slot: slots.Slot, run: int) -> None:
    """Empty the slot. Normally it is: task-exit does that."""
    place = slot.open_place()
    task: int | None = None
    user = -1
    try:
        left = slots.read_fields("state", run, owner=0)
        user = int(_one(left, "user"))
        task = slot.open_task(_one(left, "task_id"))
    except (OSError, ValueError, slots.ProblemError):
        task = None  # nothing was left, or the daemon has no such task any more: then nobody wants it
    problems = slots.give_back(slot, task, place, user)
    if os.listdir(place):
        raise slots.ProblemError("the slot cannot be emptied: " + "; ".join(problems))
    for name in slots.RUN_FILES:
        slots.remove(name, run)


def take_ticket(slot: slots.Slot) -> dict[str, list[str]]:
    """The ticket of the slot; nobody else gets it any more."""
    instance = slot.open_instance()
    try:
        directory = slots.open_directory("slots", instance, owner=slot.owner[0])
    finally:
        os.close(instance)
    taken = f".taken-{slot.number}"
    try:
        os.rename(slot.number, taken, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError as error:
        raise slots.ProblemError("there is no ticket: the start was taken back") from error
    ticket = slots.read_fields(taken, directory, owner=slot.owner[0])
    slots.remove(taken, directory)
    os.close(directory)
    if _one(ticket, "version") != _VERSION:
        raise slots.ProblemError("the ticket is of another version; upgrade the agentina package")
    if _one(ticket, "boot_id") != boot_id():
        raise slots.ProblemError("the ticket is of an earlier boot")
    return ticket


def prepare(slot: slots.Slot, run: int, ticket: dict[str, list[str]]) -> None:
    """Steps 3 to 6."""
    task_id = _one(ticket, "task_id")
    task = slot.open_task(task_id)
    user = dynamic_user(slot)
    set_room_aside(task)
    started_ms = time.time_ns() // 1_000_000
    state = [
        ("task_id", task_id), ("nonce", _one(ticket, "nonce")), ("slot", slot.name), ("boot_id", boot_id()),
        ("started_ms", str(started_ms)), ("started", str(time.clock_gettime(time.CLOCK_BOOTTIME))), ("user", str(user)),
        ("oom", _one(ticket, "oom")), ("output_bytes", _one(ticket, "output_bytes")),
        ("memory_bytes", _one(ticket, "memory_bytes")),
    ]  # fmt: skip
    make_fence(task, state)
    readable = (0, slot.owner[1])
    slots.write_file("state", run, fields.encode(state), owner=readable, mode=0o640)
    place = slot.open_place()
    move_in(slot, task, place, user)
    for mirror in ticket.get("mirror", ()):
        lend_objects(slot, mirror, place)
    os.close(slots.make_directory("orders", place, owner=slot.owner, mode=0o755))
    output = slots.create("output.log", task, owner=slot.owner, mode=0o600)
    report = slots.create("report", run, owner=readable, mode=0o640)
    if _one(ticket, "oom") == "kill":
        kill_together()
    write_databases(slot, run, user, home_of(ticket))
    hand_over({"launch": _launch(ticket), "report": report, "output": output})


def dynamic_user(slot: slots.Slot) -> int:
    """The id that systemd gave to this slot's user for now. Nobody else has it: the supervisor relies on that.

    The links are what nss-systemd reads when it cannot ask PID 1; asking is not possible while PID 1 waits for us.
    """
    name = f"_{slot.name}"
    if os.environ.get("USER") != name:
        raise slots.ProblemError(f"the unit's user is not {name}; take back what was changed in it")
    try:
        user = int(os.readlink(f"/run/systemd/dynamic-uid/direct:{name}"))
    except (OSError, ValueError) as error:
        raise slots.ProblemError(f"the user {name!r} of the unit is not known") from error
    if user not in slots.DYNAMIC_USERS:
        raise slots.ProblemError(f"the user id {user} is none of a unit with DynamicUser=")
    return user


def set_room_aside(task: int) -> None:
    """Make the file that task-exit writes the result into."""
    slots.remove(".result.json.room", task)
    room = slots.create(".result.json.room", task, owner=(0, 0), mode=0o600)
    try:
        os.posix_fallocate(room, 0, _RESULT_ROOM)
    finally:
        os.close(room)


def make_fence(task: int, state: list[tuple[str, str]]) -> None:
    """Make ``started``; it is on the disk when this returns.

    Raises:
        ProblemError: It is there: the task was started before.

    """
    try:
        fence = slots.create("started", task, owner=(0, 0), mode=0o644)
    except FileExistsError as error:
        raise slots.ProblemError("the task was started before") from error
    try:
        slots.write_all(fence, fields.encode(state))
        os.fsync(fence)
        os.fsync(task)
    except OSError:
        slots.remove("started", task)
        raise
    finally:
        os.close(fence)


def move_in(slot: slots.Slot, task: int, place: int, user: int) -> None:
    """Take the task's trees into the slot, and give them to its user."""
    for name in slots.MOVED:
        try:
            os.rename(name, name, src_dir_fd=task, dst_dir_fd=place)
        except FileNotFoundError:
            continue
        slots.change_owner(name, place, before=slot.owner[0], after=(user, user))


def write_databases(slot: slots.Slot, run: int, user: int, home: str) -> None:
    """Write the user databases that the task sees in place of the system's: the same, and its own user first.

    A dynamic user is in no file, and whoever could be asked about it (nss-systemd asks PID 1) may not be installed and
    cannot be reached from inside. Without a name ssh, git and many others refuse to work (getpwuid(3)).
    """
    lines = {
        "passwd": f"_{slot.name}:x:{user}:{user}:agentina task:{home}:/bin/sh\n",
        "group": f"_{slot.name}:x:{user}:\n",
    }
    for name, line in lines.items():
        with open(f"/etc/{name}", "rb", buffering=0) as file:
            content = line.encode() + slots.read_all(file.fileno())
        slots.write_file(name, run, content, owner=(0, 0), mode=0o644)


def home_of(ticket: dict[str, list[str]]) -> str:
    """The home directory of the task's user: what its environment says, where a line of passwd(5) can say it too."""
    for variable in ticket.get("environment", ()):
        name, _, value = variable.partition("=")
        if name == "HOME" and value.startswith("/") and ":" not in value and value.isprintable():
            return value
    return f"{slots.TASK}/home"


def lend_objects(slot: slots.Slot, mirror: str, place: int) -> None:
    """Put the objects of a mirror into the slot, as further names of the same files: they never change.

    The mirror is the daemon's; whatever it put there was its own to read, and the task can read it and no more.
    """
    if "/" in mirror or mirror.startswith("."):
        raise slots.ProblemError("the ticket names no mirror")
    source = os.open(slots.CACHE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    target = os.dup(place)
    for part in ("agentina", "mirrors", mirror, "objects"):
        above, source = source, slots.open_directory(part, source, owner=slot.owner[0])
        os.close(above)
    for part in ("mirror", "objects"):
        above, target = target, slots.make_directory(part, target, owner=(0, 0), mode=0o755)
        os.close(above)
    try:
        for part in os.listdir(source):
            if part == "pack" or len(part) == 2:  # noqa: PLR2004 - the first byte of an object's name
                _lend_directory(slot, part, source, target)
    finally:
        os.close(source)
        os.close(target)


def _lend_directory(slot: slots.Slot, part: str, source: int, target: int) -> None:
    here = slots.open_directory(part, source, owner=slot.owner[0])
    there = slots.make_directory(part, target, owner=(0, 0), mode=0o755)
    try:
        names = set(os.listdir(here))
        for name in names:
            # A fetch under way writes an index last; without its pack it would be damage.
            if name.startswith("tmp_") or (name.endswith(".idx") and f"{name[:-4]}.pack" not in names):
                continue
            try:
                os.link(name, name, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(slot, name, here, there)  # the cache has a file system of its own
    finally:
        os.close(here)
        os.close(there)


def _copy(slot: slots.Slot, name: str, here: int, there: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    try:
        if os.fstat(source).st_uid != slot.owner[0]:
            raise slots.ProblemError(f"the object {name!r} belongs to somebody else")
        target = slots.create(name, there, owner=(0, 0), mode=0o444)
        try:
            while part := os.read(source, 1 << 20):
                slots.write_all(target, part)
        finally:
            os.close(target)
    finally:
        os.close(source)


def kill_together() -> None:
    """Have the kernel end the whole task when one of its processes is ended for want of memory."""
    try:
        descriptor = os.open(f"{cgroup()}/memory.oom.group", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # no memory controller: nothing ends it, and the executor's guarantees say so
    os.write(descriptor, b"1")
    os.close(descriptor)


def cgroup() -> str:
    """The control group this process is in."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        path = next(line[3:].rstrip("\n") for line in file if line.startswith("0::"))
    return f"/sys/fs/cgroup{path}"


def boot_id() -> str:
    """The running boot's id."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def hand_over(descriptors: dict[str, int]) -> None:
    """Give open files to PID 1 (sd_notify(3), FDSTORE=1) for the supervisor; it has them when this returns.

    With them goes the connection itself: who sends is known by the process that does, not by who connected.
    """
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    address = os.environ["NOTIFY_SOCKET"]
    channel.connect("\0" + address[1:] if address.startswith("@") else address)
    for name, descriptor in {**descriptors, "notify": channel.fileno()}.items():
        _send(channel, f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)
    # PID 1 closes the pipe when it has read everything before (sd_notify_barrier(3)).
    reader, writer = os.pipe2(os.O_CLOEXEC)
    _send(channel, "BARRIER=1", writer)
    os.close(writer)
    import select  # noqa: PLC0415 - see the module's top: nothing is loaded that is not needed

    if not select.select([reader], (), (), _BARRIER_SECONDS)[0]:
        raise slots.ProblemError("PID 1 did not take the task's files")


def _send(channel: _socket.socket, text: str, descriptor: int) -> None:
    channel.sendmsg([text.encode()], [(_SOL_SOCKET, _SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))])


def _launch(ticket: dict[str, list[str]]) -> int:
    """A file without a name that holds what the supervisor needs: no process of the task can open it."""
    pairs = [(name, value) for name in _PASSED_ON for value in ticket.get(name, ())]
    descriptor = os.memfd_create("launch", os.MFD_CLOEXEC)
    slots.write_all(descriptor, fields.encode(pairs))
    return descriptor


def _one(found: dict[str, list[str]], name: str) -> str:
    values = found.get(name, [])
    if len(values) != 1:
        raise slots.ProblemError(f"the ticket has {len(values)} values for {name}")
    return values[0]

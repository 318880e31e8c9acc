"""What a hostile job and a taken-over daemon try on a host; every attempt must fail.

The host is a container with an agent and a neighbour: another task that runs, with a secret. Attempts come from a real
job, in one list after the other, so that adding one is a line. Each list is also run by root, outside of any
containment, where each must succeed: an attempt that cannot succeed would show nothing. What not even root can do in a
container is tried again in a virtual machine.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import textwrap
from collections.abc import Callable
from typing import Any, Final

import pytest

from agentina.inside import door as inside
from agentina.protocol import states
from tests.vm import attacks, container, host, lab, machine, slots

#: What is planted wherever a secret is.
MARK: Final = "agentina-planted-secret"
#: Places of secrets, by what they stand for. The daemon's own files, whatever their names, are all in its directory.
PLANTED: Final = {
    "the daemon's key and license": "/var/lib/agentina/default/planted",
    "the daemon's outbox": "/var/lib/agentina/default/outbox/planted",
    "another instance": "/var/lib/agentina/other/planted",
    "repositories of others": "/var/cache/agentina/mirrors/planted",
    "the host owner's policy": "/etc/agentina/policy.yaml.planted",
    "what root's helpers leave": "/run/agentina-tasks/planted",
    "the daemon's socket": "/run/agentina/default/planted",
    "people's homes": "/home/person/planted",
    "root's home": "/root/planted",
    "temporary files of others": "/tmp/planted",
    "more temporary files of others": "/var/tmp/planted",
    "shared memory of others": "/dev/shm/planted",
}

SMALL: Final = {"memory": "128MiB", "cpu": 1, "pids": 64}

# --- programs --------------------------------------------------------------------------------------------------------

# Prints everything on the host that can be written to, but for sockets.
_WRITABLE: Final = """
import os, stat
own = f"/proc/{os.getpid()}"
def is_writable(entry):
    # For files what opening them says: below /proc the mode is not all.
    if not entry.is_file(follow_symlinks=False):
        return os.access(entry.path, os.W_OK)
    try:
        os.close(os.open(entry.path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    except OSError:
        return False
    return True
def look(path):
    try:
        with os.scandir(path) as listing:
            entries = list(listing)
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink() or entry.path == own or stat.S_ISSOCK(entry.stat().st_mode):
            continue
        if is_writable(entry):
            print(entry.path)
        if entry.is_dir(follow_symlinks=False):
            look(entry.path)
look("/")
"""
# Runs each attempt of a list in a process of its own, and prints the names of those that succeed. Python attempts end
# with an exception when they fail, shell attempts with an exit code.
_TRY: Final = """
import ctypes, errno, os, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    "A system call by its number on x86_64."
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
def attempt(code):
    if not code.startswith("python: "):
        return subprocess.run(["/bin/sh", "-c", code], stdin=-3, stdout=-3, stderr=-3).returncode == 0
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            os.setsid()
            exec(code.removeprefix("python: "))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0
places.setdefault("supervisor", os.getppid())
for name, code in attempts.items():
    for place, value in places.items():
        code = code.replace("{" + place + "}", str(value))
    if attempt(code):
        print(name, flush=True)
print("complete")
"""

# --- attempts --------------------------------------------------------------------------------------------------------

NETWORK: Final = {
    "the machine beyond": "python: socket.create_connection(('10.0.2.2', {port}), 5)",
    "a service of the host": "python: socket.create_connection(('127.0.0.1', 22), 5)",
    "a datagram": "python: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('10.0.2.2', 9))",
    "an echo": "python: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "packets": "python: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "the kernel's configuration": "python: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "another interface": "ip link add agentina0 type bridge && ip link delete agentina0",
}
PRIVILEGES: Final = {
    "to be root": "python: os.setuid(0)",
    "groups": "python: os.setgroups([0, 4])",
    "the owner's key to root": "test $(sudo -n id -u) = 0",
    "a set-user-id file": "cp /bin/true ./s && chmod u+s ./s && rm ./s",
    "a file with capabilities": (
        "python: open('./c', 'w'); os.setxattr('./c', 'security.capability', bytes([1, 0, 0, 2, 0, 32, *bytes(14)]))"
    ),
    "a set-user-id program's rights": "mount -t tmpfs none /mnt && umount /mnt",
    "a user namespace": "unshare --user true",
    "a user namespace by another way": "python: call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)",
    "a mount namespace": "unshare --mount true",
    "a network namespace": "unshare --net true",
    "a process namespace": "unshare --pid --fork true",
    "another root": "chroot / true",
    "a mount": "mount --bind /etc /mnt && umount /mnt",
    "a device": "mknod ./d c 1 1 && rm ./d",
    "the memory": "head -c 1 /dev/mem",
    "the disk": "head -c 1 /dev/vda",
    "the kernel's log": "dmesg",
    "the kernel's log device": "head -c 0 /dev/kmsg",
    "a trace of its supervisor": "python: call(101, 0x4206, {supervisor}, 0, 0)",
    "a trace of its neighbour": "python: call(101, 0x4206, {neighbour}, 0, 0)",
    "a probe": "python: call(298, (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0)",
    "a program in the kernel": "python: call(321, 0, (ctypes.c_uint32 * 32)(2, 4, 4, 1), 128)",
    "io_uring": "python: call(425, 4, (ctypes.c_char * 120)())",
    "a key": "python: call(248, b'user', b'agentina', b'x', 1, -4)",
    "a page fault handler": "python: call(323, 1)",
    "a kernel module": "modprobe dummy",
    "the clock": "python: import time; time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "the host's name": "python: socket.sethostname(socket.gethostname())",
    "real-time scheduling": "python: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "more than its share": "python: os.nice(-5)",
    "to outlive a lack of memory": "echo -1000 > /proc/self/oom_score_adj",
    "more open files": "python: import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (99999, 99999))",
    "another personality": "python: call(135, 0x0040000)",
    "kernel settings": "python: open('/proc/sys/kernel/core_pattern', 'a').close()",
    "kernel objects": "python: open('/sys/module/printk/parameters/time', 'a').close()",
    "the restart key": "python: open('/proc/sysrq-trigger', 'a').close()",
    "a memory limit": "python: open('/sys/fs/cgroup/system.slice/memory.max', 'a').close()",
    "another control group": "mkdir /sys/fs/cgroup/mine && rmdir /sys/fs/cgroup/mine",
    "to leave its control group": "echo $$ > /sys/fs/cgroup/init.scope/cgroup.procs",
    "sight of other processes": "ls /proc/1/",
    "the first process": "kill -0 1",
    "the daemon": "kill -0 {daemon}",
    "its neighbour": "kill -0 {neighbour}",
    "its neighbour's memory": "head -c 1 /proc/{neighbour}/environ",
    "its supervisor's memory": "head -c 1 /proc/{supervisor}/environ",
    "its supervisor's open files": "ls -l /proc/{supervisor}/fd/3",
    "its supervisor's descriptors": "python: call(438, os.pidfd_open({supervisor}), 0, 0)",
    "its result": "touch /var/lib/agentina/{place}/result.json && rm /var/lib/agentina/{place}/result.json",
    "its orders": "touch /var/lib/agentina/{place}/orders/x && rm /var/lib/agentina/{place}/orders/x",
    "a unit": "systemd-run --no-block true",
    "to stay after its end": "loginctl enable-linger root",
}

#: What is about the kernel alone. It may be refused even to root of a container.
IN_A_MACHINE: Final = {name: code for name, code in PRIVILEGES.items() if "{" not in code}

# What a taken-over daemon asks for. The names of its own template's units are all it may use, with five verbs.
_CALL: Final = "busctl --system --timeout=20 call"
_MANAGER: Final = f"{_CALL} org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
#: Of the neighbour.
_UNIT: Final = "agentina-task@{slot}.service"
REQUESTS: Final = {
    "start of another unit": f"{_MANAGER} StartUnit ss ssh.service replace",
    "start of a name that looks like ours": f"{_MANAGER} StartUnit ss agentina-task@x-S1.service.service replace",
    "start of the template's neighbour": f"{_MANAGER} StartUnit ss agentina-task-x@default-S1.service replace",
    "start of an escaped name": rf"{_MANAGER} StartUnit ss 'agentina-task@..\x2fx-S1.service' replace",
    "another instance of itself": f"{_MANAGER} StartUnit ss agentina@root.service replace",
    "end of another unit": f"{_MANAGER} StopUnit ss cron.service replace",
    "end of all but one": f"{_MANAGER} StartUnit ss rescue.target isolate",
    "signal to another unit": f"{_MANAGER} KillUnit ssi ssh.service all 15",
    "limits of another unit": f"{_MANAGER} SetUnitProperties 'sba(sv)' ssh.service true 1 MemoryMax t 1000000000",
    "limits of all tasks": (
        f"{_MANAGER} SetUnitProperties 'sba(sv)' agentina-tasks.slice true 1 MemoryMax t 18446744073709551615"
    ),
    "another program": (
        f"{_MANAGER} SetUnitProperties 'sba(sv)' {_UNIT} true 1 ExecStart 'a(sasb)' 1 /bin/sh 1 sh false"
    ),
    "another user": f"{_MANAGER} SetUnitProperties 'sba(sv)' {_UNIT} true 1 User s root",
    "the network": f"{_MANAGER} SetUnitProperties 'sba(sv)' {_UNIT} true 1 PrivateNetwork b false",
    "a transient unit": f"{_MANAGER} StartTransientUnit 'ssa(sv)a(sa(sv))' {_UNIT} replace 1 Description s x 0",
    "a process into a unit": f"{_MANAGER} AttachProcessesToUnit ssau {_UNIT} / 1 $$",
    "a mount into a unit": f"{_MANAGER} BindMountUnit sssbb {_UNIT} /root /mnt false false",
    "a stop of time": f"{_MANAGER} FreezeUnit s {_UNIT}",
    "units at boot": f"{_MANAGER} EnableUnitFiles asbb 1 agentina-task@x-S1.service false true",
    "a unit of its own making": f"{_MANAGER} LinkUnitFiles asbb 1 /var/lib/agentina/default/x.service true true",
    "a unit masked": f"{_MANAGER} MaskUnitFiles asbb 1 ssh.service true true",
    "a new look at units": f"{_MANAGER} Reload",
    "systemd anew": f"{_MANAGER} Reexecute",
    "environment of all units": f"{_MANAGER} SetEnvironment as 1 LD_PRELOAD=/var/lib/agentina/default/x.so",
    "failed units forgotten": f"{_MANAGER} ResetFailed",
    "power off": f"{_MANAGER} PowerOff",
    "restart": (
        f"{_CALL} org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager Reboot b false"
    ),
    "a user that lingers": f"{_CALL} org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager "
    "SetUserLinger ubb $(id -u) true false",
    "the host's name": f"{_CALL} org.freedesktop.hostname1 /org/freedesktop/hostname1 org.freedesktop.hostname1 "
    "SetStaticHostname sb x false",
    "the clock": f"{_CALL} org.freedesktop.timedate1 /org/freedesktop/timedate1 org.freedesktop.timedate1 "
    "SetTime xbb 1 true false",
    "the link up or down": f"{_CALL} org.freedesktop.network1 /org/freedesktop/network1 "
    "org.freedesktop.network1.Manager Reload",
    "root": "sudo -n true || su -c true root </dev/null || pkexec true",
}
#: Places where the daemon's user may write; ``*`` is anything below. All its own, and everybody's.
DAEMONS_PLACES: Final = (
    "/var/lib/agentina/default", "/var/lib/agentina/other", "/var/lib/agentina/contract", "/var/cache/agentina",
    "/run/agentina", "/tmp", "/var/tmp", "/run/lock", "/dev", "/proc",
)  # fmt: skip
#: The same for a task. Its directory and files under /proc/self are told apart from others' by the kernel.
TASKS_PLACES: Final = ("/var/lib/agentina/task/workspace", "/var/lib/agentina/task/home", "/tmp", "/var/tmp")
TASKS_DEVICES: Final = {
    *("/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", "/dev/pts/ptmx"),
    *("/dev/mqueue", "/dev/shm"),  # its own
    *("/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory"),  # asks to be told, and changes nothing
}


# --- the stage -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Stage:
    """A host under attack."""

    there: container.Container
    run_lab: lab.Lab
    #: Main process of the daemon.
    daemon: int
    #: First process of the neighbour, and the name of its slot.
    neighbour: int
    slot: str

    def attack(self, program: str) -> list[str]:
        """Run a Python program as a job; the lines it prints."""
        packed = base64.b64encode(program.encode()).decode()
        starter = f"import base64; exec(base64.b64decode('{packed}'))"
        job = self.run_lab.fleet.submit(["python3", "-c", starter], resources=SMALL, retry={"max_attempts": 1})
        view = self.run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
        output = self.run_lab.fleet.output(job).decode()
        assert view.job.state is states.State.SUCCEEDED, (view.job, output)
        return output.splitlines()

    def try_as(self, user: str, program: str) -> list[str]:
        """Run a Python program on the host, outside of any containment; the lines it prints."""
        self.there.put(program.encode(), "/usr/local/share/attack.py")
        script = "cd $(mktemp -d) && python3 /usr/local/share/attack.py 2>/dev/null"
        return self.there.run(script, user=user).splitlines()

    def check_unhurt(self) -> None:
        """Fail if the daemon or the neighbour were hurt."""
        assert self.there.run("systemctl show -P MainPID agentina@default").strip() == str(self.daemon)
        self.there.run(f"kill -0 {self.neighbour}; test $(cat /root/victim/file) = mine")
        assert self.there.run("find /root/victim ! -user root; ls /root/victim").split() == ["file"]


@pytest.fixture(scope="module")
def stage(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> Stage:
    there = new_container("attacked")
    run_lab.activate(there, "default", "--max-concurrent-tasks 4")
    slots.prepare(there)
    job = run_lab.fleet.submit_script(
        f"echo {MARK}; echo {MARK} > kept; echo {MARK} > /tmp/kept; exec sleep 100000",
        environment={"SECRET": MARK},
        resources=SMALL,
    )
    run_lab.fleet.wait_state(job, states.State.RUNNING, seconds=host.PATIENCE)
    for path in PLANTED.values():
        owner = "-o agentina -g agentina" if path.startswith(("/var/lib", "/var/cache", "/run/agentina/")) else ""
        there.run(f"test -d $(dirname {path}) || install -d {owner} $(dirname {path}); echo {MARK} > {path}")
    there.run("mkdir -m 755 /root/victim; echo mine > /root/victim/file; systemctl start cron 2>/dev/null; true")
    there.put(
        b"import socket, time\na = socket.socket(socket.AF_UNIX)\na.bind('\\0agentina-test-abstract')\na.listen()\n"
        b"time.sleep(100000)\n",
        "/usr/local/share/listen.py",
    )
    there.run("systemd-run -q python3 /usr/local/share/listen.py")
    daemon = int(there.run("systemctl show -P MainPID agentina@default"))
    neighbour = int(there.wait("pgrep -x -f 'sleep 100000'", "the neighbour runs"))
    slot = there.run(f"cat /proc/{neighbour}/cgroup").partition("agentina-task@")[2].partition(".")[0]
    return Stage(there, run_lab, daemon, neighbour, slot)


# --- a hostile job ---------------------------------------------------------------------------------------------------


def test_job_finds_no_secret(stage: Stage) -> None:
    to_root = stage.try_as("root", attacks.seek(MARK))
    assert set(PLANTED.values()) <= set(to_root)
    assert f"/proc/{stage.neighbour}/environ" in to_root
    assert [path for path in to_root if path.startswith("/var/lib/agentina/.slots/")]
    assert stage.attack(attacks.seek(MARK)) == []


def test_job_writes_nowhere_else(stage: Stage) -> None:
    found = stage.attack(_WRITABLE)
    own = f"/proc/{stage.neighbour}"
    beyond = [
        path
        for path in found
        if not path.startswith(TASKS_PLACES) and path not in TASKS_DEVICES and not path.startswith(own)
    ]
    assert "/var/lib/agentina/task/workspace" in found
    assert beyond == []


def test_job_reaches_nobody(stage: Stage) -> None:
    to_root = stage.try_as("root", attacks.CONNECT)
    assert {"@agentina-test-abstract", "/run/dbus/system_bus_socket", "/run/systemd/private"} <= set(to_root)
    assert "/run/agentina/default/agentina.sock" in to_root
    # Where it speaks to its daemon; that opens some time after the start.
    door, *found = stage.attack(f"import os; print(os.environ[{inside.VARIABLE!r}])\n{attacks.CONNECT}")
    assert door.startswith(f"{attacks.ORDERS}/task-")
    assert set(found) <= {door}


def test_job_gains_nothing(stage: Stage) -> None:
    attempts = {**NETWORK, **PRIVILEGES}
    places = {"port": stage.run_lab.fleet.port, "daemon": stage.daemon, "neighbour": stage.neighbour, "place": "task"}
    for_root = {**places, "place": f".slots/{stage.slot}/task", "supervisor": stage.daemon}
    *to_root, last = stage.try_as("root", f"attempts = {attempts!r}\nplaces = {for_root!r}\n{_TRY}")
    assert last == "complete"
    assert set(attempts) - set(to_root) <= set(IN_A_MACHINE), "what root cannot do either shows nothing"
    assert stage.attack(f"attempts = {attempts!r}\nplaces = {places!r}\n{_TRY}") == ["complete"]
    stage.check_unhurt()


def test_job_gains_nothing_of_a_machine(new_machine: Callable[..., machine.Machine]) -> None:
    there = new_machine("attacked-machine")
    slots.prepare(there)
    program = f"attempts = {IN_A_MACHINE!r}\nplaces = {{}}\n{_TRY}"
    there.put(program.encode(), "/usr/local/share/attack.py")
    attack = "python3 /usr/local/share/attack.py 2>/dev/null"
    assert there.run(f"cd $(mktemp -d) && {attack}").splitlines() == [*IN_A_MACHINE, "complete"]
    assert slots.run_one(there, attack)["output"] == "complete\n"


def test_job_gets_no_file_of_the_daemon_by_its_artifacts(stage: Stage) -> None:
    """The daemon collects them with rights that the job has not: links must lead nowhere, and no file hold it up."""
    script = (
        "d=/var/lib/agentina/default; ln -s $d/planted link; ln -s $d linked; mkdir real; ln -s $d real/linked; "
        "ln -s /proc/self/environ environ; mkfifo fifo; "
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; echo mine > mine"
    )
    patterns = ["link", "linked/planted", "linked/*", "real/**", "environ", "fifo", "socket", "mine"]
    job = stage.run_lab.fleet.submit_script(script, artifacts=patterns, resources=SMALL)
    view = stage.run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    kept: dict[str, bytes] = {}
    for artifact in view.artifacts:
        pieces: list[bytes] = []
        stage.run_lab.fleet.client.read_artifact(job, artifact.name, pieces.append)
        kept[artifact.name] = b"".join(pieces)
    assert kept == {"mine": b"mine\n"}, view.job


#: Ways to take 60 MB of the disk that a look at its files does not show.
HOARDS: Final = {
    "a file without a name": "exec 9>big; rm big; head -c 60M /dev/zero >&9",
    "room beyond the output's end": (
        "python3 -c 'import ctypes; ctypes.CDLL(None).fallocate(1, 1, ctypes.c_long(0), ctypes.c_long(60 << 20))'"
    ),
    "files without content": "mkdir many; cd many; seq 15000 | xargs touch",
    "room beyond a file's end": ": > big; fallocate --keep-size --length 60M big",
}


@pytest.mark.parametrize("way", HOARDS)
def test_job_hides_no_use_of_the_disk(stage: Stage, way: str) -> None:
    done = slots.run_one(stage.there, f"{HOARDS[way]}; sleep 1000", disk_bytes=20 << 20, timeout_seconds=60.0)
    assert done["result"]["stopped"] == "disk-limit", done


# --- a taken-over daemon ---------------------------------------------------------------------------------------------


def test_daemons_user_may_ask_for_its_slots_only(stage: Stage) -> None:
    lines = [f"{{ {request.replace('{slot}', stage.slot)}; }} 2>&1; echo end=$?" for request in REQUESTS.values()]
    said = re.split(r"end=(\d+)\n", stage.there.run("\n".join(lines), user="agentina", seconds=600))
    answers = dict(zip(REQUESTS, zip(said[::2], said[1::2], strict=False), strict=True))
    refused = "Access denied|uthorized|authentication required|Permission denied|password|set property|non-delegated"
    # A mistake in the request is no refusal.
    assert {name: said for name, said in answers.items() if said[1] == "0" or not re.search(refused, said[0])} == {}
    stage.check_unhurt()


def test_daemons_user_writes_nowhere_else(stage: Stage) -> None:
    found = stage.try_as("agentina", _WRITABLE)
    assert "/var/lib/agentina/default" in found
    assert [path for path in found if not path.startswith(DAEMONS_PLACES)] == []


# The instance ``contract`` of a daemon that is not there: its user writes tickets and directories as it likes.
_HOSTILE: Final = """
import os, shutil, subprocess
from agentina.executors import fields
VICTIM = Path("/root/victim")
places = systemd.Places("contract", STATE)
places.tickets.mkdir(exist_ok=True)
def ticket(launched, **changes):
    kept = [(name, value) for name, value in systemd._ticket(launched, "n", clock.boot_id()) if name not in changes]
    return fields.encode(kept + [(name, value) for name, values in changes.items() for value in values])
def start(wait=True):
    subprocess.run(["systemctl", "start", places.unit(1)], capture_output=True, timeout=120)
    while wait and places.cgroup(places.name(1)).exists():
        time.sleep(0.05)
def clear():
    path = places.tickets / "1"
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
"""
#: Fields of tickets that lead elsewhere, or are not what they should be.
TICKETS: Final[dict[str, list[Any]]] = {
    "task_id": [["../other"], ["/root/victim"], [".."], ["."], [""], ["x" * 65], ["a\nb"], ["a", "b"], []],
    "mirror": [["../../../root/victim"], ["/root/victim"], [".."], [""], ["link"], ["a/b"]],
    "argv": [[], ["/root/victim/file"], [""]],
    "environment": [["no equals sign"], ["A=\0"], ["=x"], ["HOME=/x:0:0\nroot2:x:0:0::/:/bin/sh"]],
    "memory_bytes": [["x"], []],
    "output_bytes": [["-1"], ["x"], [str(1 << 70)]],
    "disk_bytes": [["-1"], ["x"]],
    "timeout_seconds": [["nan"], ["-1"], ["x"]],
    "lease_deadline": [["nan"], ["x"]],
    "oom": [["x"], []],
    "version": [["2"], []],
    "boot_id": [["x"]],
}


def hostile(stage: Stage, script: str) -> Any:
    """Run a script as the daemon's user, after the one above; what it prints as JSON."""
    return slots.python(stage.there, _HOSTILE + textwrap.dedent(script), seconds=600)


def test_tickets_lead_nowhere_else(stage: Stage) -> None:
    """Whatever one says: no file of others changes hands, no helper hangs, and the slot serves its next task."""
    done = hostile(
        stage,
        f"""
        mirrors = Path("/var/cache/agentina/mirrors")
        (mirrors / "link").symlink_to(VICTIM)
        number = 0
        for name, variants in {TICKETS!r}.items():
            for values in variants:
                launched = shell(f"job_t{{(number := number + 1):015d}}.1", "true")
                (places.tickets / "1").write_bytes(ticket(launched, **{{name: values}}))
                start()
                clear()
        for make in (
            lambda path: path.symlink_to(VICTIM / "file"), os.mkfifo, os.mkdir, lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"99999999999:x"), lambda path: path.write_bytes(bytes(40 << 20)),
        ):
            make(places.tickets / "1")
            start()
            clear()
        (mirrors / "link").unlink()
        async def main():
            executor = await opened()
            print(json.dumps(await run(executor, shell("job_uuuuuuuuuuuuuuuu.1", "id -un"))))
        asyncio.run(main())
        """,
    )
    assert done["output"] == "_contract-S1\n"
    stage.check_unhurt()


def test_directories_lead_nowhere_else(stage: Stage) -> None:
    """What root opens is swapped for links: before a start, while it is under way, and before the end."""
    hostile(
        stage,
        """
        import threading
        def swapped(path, act):
            aside = STATE / "aside"
            path.rename(aside)
            path.symlink_to(VICTIM)
            try:
                act()
            finally:
                path.unlink()
                aside.rename(path)
        for number, part in enumerate(("tasks", "tasks/{}", "tasks/{}/workspace", "tasks/{}/home", "slots")):
            launched = shell(f"job_v{number:015d}.1", "true")
            (places.tickets / "1").write_bytes(ticket(launched))
            swapped(STATE / part.format(launched.task_id), start)
            clear()
        for number, part in enumerate(("tasks", "tasks/{}")):
            launched = shell(f"job_w{number:015d}.1", "sleep 100")
            (places.tickets / "1").write_bytes(ticket(launched))
            start(wait=False)
            stop = lambda: subprocess.run(["systemctl", "stop", places.unit(1)], check=True, timeout=120)
            swapped(STATE / part.format(launched.task_id), stop)
        for number in range(6):
            launched = shell(f"job_x{number:015d}.1", "true")
            for name in range(100):
                (launched.workspace / str(name)).touch()
            (places.tickets / "1").write_bytes(ticket(launched))
            starting = threading.Thread(target=start)
            starting.start()
            while starting.is_alive():
                for path in launched.workspace, launched.directory:
                    try:
                        os.rename(path, STATE / "raced")
                        os.symlink(VICTIM, path)
                        os.unlink(path)
                        os.rename(STATE / "raced", path)
                    except OSError:
                        shutil.rmtree(STATE / "raced", ignore_errors=True)
            clear()
        print(0)
        """,
    )
    stage.check_unhurt()


def test_orders_lead_nowhere_else(stage: Stage) -> None:
    """Anything may be where orders and the gateway's socket are: root deletes it, and follows nothing."""
    done = hostile(
        stage,
        """
        import socket
        launched = shell("job_y000000000000000.1", "sleep 100")
        (places.tickets / "1").write_bytes(ticket(launched))
        start(wait=False)
        orders = places.orders(places.name(1))
        for name in "stop.tmp", "gateway-job_y000000000000000.1.sock":
            (orders / name).symlink_to(VICTIM / "file")
        (orders / "linked").symlink_to(VICTIM)
        (orders / "deep/er").mkdir(parents=True)
        (orders / "deep/er/linked").symlink_to(VICTIM)
        os.mkfifo(orders / "fifo")
        socket.socket(socket.AF_UNIX).bind(str(orders / "socket"))
        subprocess.run(["systemctl", "stop", places.unit(1)], check=True, timeout=120)
        left = sorted(os.listdir(orders.parent))
        async def main():
            executor = await opened()
            ended = await run(executor, shell("job_z000000000000000.1", "ls -A /var/lib/agentina/task/orders"))
            print(json.dumps({"left": left, **ended}))
        asyncio.run(main())
        """,
    )
    assert (done["left"], done["output"]) == ([], "")
    stage.check_unhurt()

"""A container with systemd as PID 1, at native speed: for everything but limits, power cuts and clocks.

What differs from a virtual machine: limits of memory, processor and processes do not hold where the build machine
keeps those controllers out of its cgroup v2 tree; the wall clock is the machine's; and unless it ``forgets``, the boot
id is, so that a reboot is not seen as one.

Its file system is in memory, and a cut loses nothing that was written. With ``forgets`` it is an ext4 on a disk of its
own, which a cut shuts down as xfstests do (``EXT4_IOC_SHUTDOWN`` without a flush of the log): what was not synced and
not yet written back is lost, and the next boot starts with the recovery of its journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import uuid
from pathlib import Path
from typing import IO, Final

from tests.fakes import procfs
from tests.vm import host, images

#: Bytes that a container may write.
DISK: Final = 2 << 30
#: The bridge between containers and this machine; 10.0.2.2 is this machine, as in QEMU's user network.
BRIDGE: Final = "agentina-vm0"
#: Its own, for it would otherwise have that of a container, and another one when that container goes: the others, which
#: go on sending to the one that they know, then hear nothing of this machine for a minute or more.
_BRIDGE_ADDRESS: Final = "02:00:0a:00:02:02"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_BOOT_ID_SERVICE: Final = f"""
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=sh -c 'umount {_BOOT_ID}; mount --bind /etc/boot-id {_BOOT_ID}'
"""
_CGROUPS: Final = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
#: ``EXT4_IOC_SHUTDOWN`` and ``EXT4_GOING_FLAGS_NOLOGFLUSH`` (Linux, fs/ext4/ext4.h).
_SHUT_DOWN: Final = (0x8004587D, 2)
#: Which numbers are taken: on the whole machine, for a checkout may have a cache of its own.
_NUMBERS_TAKEN: Final = Path("/run/lock/agentina-vm")
_LOOK_SECONDS: Final = 0.2
#: Last parts of the containers' addresses.
_NUMBERS: Final = range(16, 250)


class Container(host.Host):
    """A container with a file system of its own."""

    kind = "container"
    has_limits = False

    def __init__(self, image: images.Image, directory: Path, *, name: str = "host", forgets: bool = False) -> None:
        """See :class:`host.Host`; when it ``forgets``, a cut loses what was not synced."""
        super().__init__(image, directory, name=name)
        self._root = directory / "root"
        self._writable = directory / "writable"
        for path in (self._root, self._writable):
            path.mkdir(parents=True, exist_ok=True)
        self._disk = directory / "disk.ext4" if forgets else None
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._lock, self._number = _take_number()
        if self._disk is not None:
            with self._disk.open("wb") as disk:
                disk.truncate(DISK)
            _run("mkfs.ext4", "-q", str(self._disk))
            # Shared, for another container that starts meanwhile has a copy of every mount: it goes with ours.
            _run("mount", "--bind", "--make-shared", str(directory), str(directory))
        self._mount()
        (self._root / "etc/hostname").write_text(f"{name}\n")
        settings = images.network(f"10.0.2.{self._number}")
        (self._root / "etc/systemd/network/10-host.network").write_text(settings)
        if forgets:
            self._give_boot_id()

    def _give_boot_id(self) -> None:
        """Let everything in there, units with a /proc of their own included, see a boot id that each start makes anew.

        nspawn's own is a file without a name, which cannot be mounted elsewhere.
        """
        units = self._root / "usr/local/lib/systemd/system"
        for unit in ("agentina@", "agentina-trial@", "agentina-update@", "agentina-task@"):
            drop_in = units / f"{unit}.service.d/boot-id.conf"
            drop_in.parent.mkdir(parents=True)
            drop_in.write_text(f"[Service]\nBindReadOnlyPaths=/etc/boot-id:{_BOOT_ID}\n")
        (units / "boot-id.service").write_text(_BOOT_ID_SERVICE)
        wanted = self._root / "etc/systemd/system/sysinit.target.wants"
        wanted.mkdir(exist_ok=True)
        (wanted / "boot-id.service").symlink_to("/usr/local/lib/systemd/system/boot-id.service")
        _run("sync", "--file-system", str(self._writable))

    def _mount(self) -> None:
        if self._disk is None:
            _run("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "agentina-vm", str(self._writable))
        else:
            _run("mount", "-t", "ext4", "-o", "loop,noatime,noauto_da_alloc", str(self._disk), str(self._writable))
        upper, work = self._writable / "upper", self._writable / "work"
        for part in (upper, work):
            part.mkdir(exist_ok=True)
        options = f"lowerdir={self.image.rootfs},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "-o", options, "agentina-vm", str(self._root))

    def leave(self, path: str, content: str) -> None:
        """Write a file while it is off, as somebody who has its disk: what it wrote itself is none the safer for it."""
        assert self._process is None, "it is on"
        if not self._root.is_mount():
            self._mount()
        (self._root / path.lstrip("/")).write_text(content)

    # --- commands --------------------------------------------------------------------------------------------------

    def argv(self, script: str) -> list[str]:
        """See :class:`host.Host`."""
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"]
        return ["nsenter", "-t", str(self._leader), "-a", *clean, "bash", "-c", f"cd\n{script}"]

    def ssh(self) -> tuple[str, int]:
        """See :class:`host.Host`."""
        return f"10.0.2.{self._number}", 22

    # --- power -----------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """See :class:`host.Host`."""
        assert self._process is None, "it is on"
        if not self._root.is_mount():
            self._mount()
        if self._disk is not None:
            (self._root / "etc/boot-id").write_text(f"{uuid.uuid4()}\n")
        _make_bridge()
        # The kernel takes the interface of a host that was cut away when it comes to it.
        link = Path(f"/sys/class/net/vb-av-{self._number}")
        host.wait_for(lambda: not link.exists(), f"{link.name} is gone")
        group = _cgroup() / f"agentina-vm-{self._number}"
        group.mkdir(exist_ok=True)
        # In a group of its own: systemd in two containers would otherwise share, and clear, one tree.
        start = f'echo $$ > "{group}/cgroup.procs" && exec "$0" "$@"'
        nspawn = [
            "env",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            f"--hostname={self.name}",
        ]
        # The name of its interface here is made of the machine's: short, and no other's.
        nspawn += [f"--machine=av-{self._number}"]
        nspawn += [f"--directory={self._root}", f"--network-bridge={BRIDGE}", "--console=read-only"]
        nspawn += ["--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        self._process = host.start_process(["bash", "-c", start, *nspawn], self._console)
        self._leader = host.wait_for(self._find_leader, f"{self.name} starts")

    def wait_up(self) -> None:
        """See :class:`host.Host`."""
        self.wait("test -S /run/dbus/system_bus_socket", "D-Bus is there")
        if self._disk is None:
            # nspawn covers it with a value of its own, which a unit with a /proc of its own does not see.
            self.try_run(f"umount {_BOOT_ID}")
        self.try_run("systemctl is-system-running --wait")

    @property
    def _console(self) -> Path:
        return self.directory / "console.log"

    def console(self) -> str:
        """What PID 1 wrote to the console."""
        return self._console.read_text(errors="replace")

    def _find_leader(self) -> int:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended: {self.console()[-2000:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return 0

    def cut(self) -> None:
        """See :class:`host.Host`."""
        was_on = self._process is not None
        if self._leader:
            number, self._leader = self._leader, 0
            leader = os.pidfd_open(number)
            with contextlib.closing(os.fdopen(leader)), contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(leader, signal.SIGKILL)
                # PID 1 has gone when all its processes have.
                while not select.select([leader], [], [], _LOOK_SECONDS)[0]:
                    _wake_entered(number)
        if was_on and self._disk is not None:
            self._forget()
        host.end_process(self._process)
        self._process = None
        # It goes with the container, but when the kernel comes to that.
        subprocess.run(["ip", "link", "delete", self._cable], capture_output=True, check=False)
        if was_on and self._disk is not None:
            self._let_go()

    def _forget(self) -> None:
        """Lose what was not written to the disk, and write no more."""
        directory = os.open(self._writable, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, _SHUT_DOWN[0], struct.pack("I", _SHUT_DOWN[1]))
        finally:
            os.close(directory)

    def _let_go(self) -> None:
        """Unmount, and wait until the kernel has let go of the disk: mounted before, it would be as it was left."""
        _remove_cgroup(_cgroup() / f"agentina-vm-{self._number}")
        for path in (self._root, self._writable):
            _run("umount", str(path))
        listed = ["losetup", "--noheadings", "--associated", str(self._disk)]
        host.wait_for(lambda: not subprocess.check_output(listed).strip(), f"{self._disk} is let go")

    @property
    def is_on(self) -> bool:
        """See :class:`host.Host`."""
        return self._process is not None and self._process.poll() is None

    def wait_off(self) -> None:
        """See :class:`host.Host`."""

        def went_off() -> bool:
            _wake_entered(self._leader)
            return not self.is_on

        try:
            host.wait_for(went_off, f"{self.name} shuts down")
            if self._disk is not None:
                # PID 1 leaves this, its last act on a machine, to a container's host.
                _run("sync", "--file-system", str(self._writable))
        finally:
            self._leader = 0
            self.cut()

    def close(self) -> None:
        """See :class:`host.Host`."""
        self.cut()
        for path in (self._root, self._writable, *([self.directory] if self._disk is not None else [])):
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
        _remove_cgroup(_cgroup() / f"agentina-vm-{self._number}")
        self._lock.close()

    # --- what is taken away ----------------------------------------------------------------------------------------

    def set_network(self, *, up: bool) -> None:
        """See :class:`host.Host`."""
        # At this end, like a cable: the host keeps its address and route, and nothing answers.
        _run("ip", "link", "set", self._cable, "up" if up else "down")

    @property
    def _cable(self) -> str:
        """This machine's end of its network, by the name that nspawn gives it."""
        return f"vb-av-{self._number}"

    def set_clock(self, offset: float, *, at_boot: bool = False) -> None:
        """See :class:`host.Host`."""
        raise NotImplementedError("a container has the machine's clock")


def _wake_entered(leader: int) -> None:
    """Let commands in a host that ends be collected.

    Its last act is to stop every process. nsenter(1) then stops itself as its child was, and never sees it killed; and
    a PID 1 is gone only when all its processes have been collected.
    """
    beginning = f"nsenter\0-t\0{leader}\0".encode()
    for pid, command in procfs.command_lines().items():
        if command.startswith(beginning):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def _cgroup() -> Path:
    for path in _CGROUPS:
        if (path / "cgroup.procs").exists() and (path / "cgroup.controllers").exists():
            return path
    raise images.ImpossibleError("this machine has no cgroup v2 tree")


def _remove_cgroup(group: Path) -> None:
    def removed() -> bool:
        # Its last processes are still on their way out.
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        return not group.exists()

    host.wait_for(removed, f"{group} is empty")


def _take_number() -> tuple[IO[str], int]:
    """A number that no other container of this machine has, and the lock that keeps it."""
    _NUMBERS_TAKEN.mkdir(parents=True, exist_ok=True)
    for number in _NUMBERS:
        lock = (_NUMBERS_TAKEN / f"{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return lock, number
    raise images.ImpossibleError("too many containers")


def _make_bridge() -> None:
    """Make the bridge; it stays, for the next container."""
    with contextlib.suppress(FileNotFoundError):
        if bridge_address() == _BRIDGE_ADDRESS:
            return
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], capture_output=True, check=False)
    subprocess.run(["ip", "address", "add", "10.0.2.2/24", "dev", BRIDGE], capture_output=True, check=False)
    _run("ip", "link", "set", BRIDGE, "address", _BRIDGE_ADDRESS, "up")


def bridge_address() -> str:
    """The address by which containers know this machine on their network."""
    return Path(f"/sys/class/net/{BRIDGE}/address").read_text().strip()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise images.ImpossibleError(f"{' '.join(command)}: {done.stderr.strip()}")


def available() -> None:
    """Check what is needed besides the image.

    Raises:
        ImpossibleError: It is not there.

    """
    _cgroup()
    if shutil.which("systemd-nspawn") is None:
        raise images.ImpossibleError("systemd-nspawn is not installed")

"""A container with systemd as PID 1, at native speed: for everything but limits, power cuts and clocks.

What differs from a virtual machine: limits of memory, processor and processes do not hold where the build machine
keeps those controllers out of its cgroup v2 tree; the wall clock is the machine's; a cut loses nothing that was
written, synced or not, and the boot id is the machine's, so that a reboot is not seen as one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import IO, Final

from tests.vm import host, images

#: Bytes that a container may write.
DISK: Final = 2 << 30
#: The bridge between containers and this machine; 10.0.2.2 is this machine, as in QEMU's user network.
_BRIDGE: Final = "agentina-vm0"
_CGROUPS: Final = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
#: Last parts of the containers' addresses.
_NUMBERS: Final = range(16, 250)


class Container(host.Host):
    """A container with a file system of its own, in memory."""

    kind = "container"
    has_limits = False

    def __init__(self, image: images.Image, directory: Path, *, name: str = "host") -> None:
        """See :class:`host.Host`."""
        super().__init__(image, directory, name=name)
        for part in ("writable", "root"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        self._root = directory / "root"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._lock, self._number = _take_number()
        self._mount()
        (self._root / "etc/hostname").write_text(f"{name}\n")
        settings = images.network(f"10.0.2.{self._number}")
        (self._root / "etc/systemd/network/10-host.network").write_text(settings)

    def _mount(self) -> None:
        writable = self.directory / "writable"
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "agentina-vm", str(writable))
        for part in ("upper", "work"):
            (writable / part).mkdir()
        options = f"lowerdir={self.image.rootfs},upperdir={writable / 'upper'},workdir={writable / 'work'}"
        _run("mount", "-t", "overlay", "-o", options, "agentina-vm", str(self._root))

    # --- commands --------------------------------------------------------------------------------------------------

    def argv(self, script: str) -> list[str]:
        """See :class:`host.Host`."""
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"]
        return ["nsenter", "-t", str(self._leader), "-a", *clean, "bash", "-c", f"cd\n{script}"]

    def ssh(self) -> tuple[str, int]:
        """See :class:`host.Host`."""
        return f"10.0.2.{self._number}", 22

    # --- power -----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """See :class:`host.Host`."""
        assert self._process is None, "it is on"
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
        # The kernel takes the interface of the one before away a little later than its last process.
        link = Path(f"/sys/class/net/vb-av-{self._number}")
        host.wait_for(lambda: not link.exists(), f"{link} is gone")
        nspawn += [f"--directory={self._root}", f"--network-bridge={_BRIDGE}", "--console=read-only"]
        nspawn += ["--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        self._process = host.start_process(["bash", "-c", start, *nspawn], self._console)
        self._leader = host.wait_for(self._find_leader, f"{self.name} starts")
        self.wait("test -S /run/dbus/system_bus_socket", "D-Bus is there")
        # nspawn covers it with a value of its own, which a unit with a /proc of its own does not see.
        self.try_run("umount /proc/sys/kernel/random/boot_id")
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
        """See :class:`host.Host`; what was written stays, synced or not."""
        if self._leader:
            leader, self._leader = os.pidfd_open(self._leader), 0
            with contextlib.closing(os.fdopen(leader)), contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(leader, signal.SIGKILL)
        host.end_process(self._process)
        self._process = None

    def shut_down(self) -> None:
        """See :class:`host.Host`."""
        assert self._process is not None
        self.try_run("systemctl poweroff --no-block")
        try:
            self._process.wait(host.PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not shut down: {self.console()[-3000:]}") from None
        finally:
            self._leader = 0
            self.cut()

    def close(self) -> None:
        """See :class:`host.Host`."""
        self.cut()
        for part in ("root", "writable"):
            subprocess.run(["umount", "--lazy", str(self.directory / part)], capture_output=True, check=False)
        _remove_cgroup(_cgroup() / f"agentina-vm-{self._number}")
        self._lock.close()

    # --- what is taken away ----------------------------------------------------------------------------------------

    def set_network(self, *, up: bool) -> None:
        """See :class:`host.Host`."""
        # At this end, like a cable: the host keeps its address and route, and nothing answers.
        _run("ip", "link", "set", f"vb-av-{self._number}", "up" if up else "down")

    def set_clock(self, offset: float, *, at_boot: bool = False) -> None:
        """See :class:`host.Host`."""
        raise NotImplementedError("a container has the machine's clock")


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
    directory = images.cache() / "containers"
    directory.mkdir(exist_ok=True)
    for number in _NUMBERS:
        lock = (directory / f"{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return lock, number
    raise images.ImpossibleError("too many containers")


def _make_bridge() -> None:
    """Make the bridge; it stays, for the next container."""
    if Path(f"/sys/class/net/{_BRIDGE}").exists():
        return
    subprocess.run(["ip", "link", "add", _BRIDGE, "type", "bridge"], capture_output=True, check=False)
    subprocess.run(["ip", "address", "add", "10.0.2.2/24", "dev", _BRIDGE], capture_output=True, check=False)
    _run("ip", "link", "set", _BRIDGE, "up")


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

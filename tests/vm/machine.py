"""A virtual machine under QEMU: the reference host.

The processor is emulated (no KVM is assumed), so it is 5 to 10 times slower than the build machine, and speed must
never be measured in it. It starts in 15 to 20 s, or, from a state saved after a boot, in about three.

Power cuts are honest: the disk has a volatile write cache (``cache=writeback``, and qcow2's own tables are written out
at the guest's flushes only), so what the guest did not flush may be gone after SIGKILL; what it did flush is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import mmap
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.vm import host, images

#: MiB of memory.
MEMORY: Final = 1536
#: Identity of every resumed machine: its devices are those of the machine that was saved.
_SAVED: Final = "saved"
_OPTIONS: Final = (
    *("-accel", "tcg,thread=multi,tb-size=256", "-machine", "q35", "-cpu", "max", "-smp", "2"),
    *("-display", "none", "-no-reboot"),
)
# What a kernel measures while it starts is wrong under emulation on a busy machine: a timer that had no chance to tick
# makes it panic, and a rate of the time stamp counter (the machine's own) makes its clock run many times too fast.
_KERNEL: Final = (
    "console=ttyS0 quiet net.ifnames=0 mitigations=off systemd.show_status=0 "
    "no_timer_check tsc=reliable tsc_early_khz={tsc_khz}"
)
_SSH: Final = (
    "BatchMode=yes",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
    "ConnectTimeout=10",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=20",
    "ControlMaster=auto",
    "ControlPersist=600",
)


class Machine(host.Host):
    """A virtual machine with a disk of its own."""

    kind = "vm"
    has_limits = True

    def __init__(
        self,
        image: images.Image,
        directory: Path,
        *,
        name: str = "host",
        memory: int = MEMORY,
        state: Path | None = None,
        resumes: bool = True,
        identity: str = "",
    ) -> None:
        """``state`` is a directory of :func:`saved`: its disk, and, for the first start if it ``resumes``, its memory.

        ``identity`` decides about serial numbers and addresses; each machine that is not resumed has its own.
        """
        super().__init__(image, directory, name=name)
        directory.mkdir(parents=True, exist_ok=True)
        self._memory = memory
        self._state = state
        self._resumes = state is not None and resumes
        #: This start resumed what was saved.
        self._woke = False
        self._disk = directory / "disk.qcow2"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._ssh_port = 0
        self._clock_offset: float | None = None
        self._identity = uuid.uuid5(uuid.NAMESPACE_DNS, _SAVED if self._resumes else identity or f"{directory}/{name}")
        backing, form = (image.disk, "raw") if state is None else (state / "disk.qcow2", "qcow2")
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", form, self._disk)

    # --- commands --------------------------------------------------------------------------------------------------

    def argv(self, script: str) -> list[str]:
        """See :class:`host.Host`; over ssh on a network of its own, which no test takes away."""
        options = [f"-o{option}" for option in (*_SSH, f"ControlPath={self._control_path}")]
        options += ["-i", str(self.image.ssh_key)]
        return ["ssh", *options, "-p", str(self._port), "root@127.0.0.1", "--", script]

    @property
    def _control_path(self) -> str:
        # Not in the machine's directory: a test's is too long for sun_path.
        digest = hashlib.sha256(f"{self.directory}:{self._port}".encode()).hexdigest()[:16]
        return f"/tmp/agentina-vm-ssh-{digest}"

    def ssh(self) -> tuple[str, int]:
        """See :class:`host.Host`."""
        return "127.0.0.1", self._ssh_port

    # --- power -----------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """See :class:`host.Host`; the first start of a saved machine resumes it."""
        assert self._process is None, "it is on"
        self._console.write_bytes(b"")
        self._port, self._ssh_port = _free_ports()
        self._woke, self._resumes = self._resumes, False
        self._process = host.start_process(self._command(resumes=self._woke), self.directory / "qemu.log")
        if self._woke:
            host.wait_for(self._goes_on, f"{self.name} resumes")

    def wait_up(self) -> None:
        """See :class:`host.Host`."""
        host.wait_for(self._answers, f"{self.name} boots", pause=0.2)
        if self._woke:
            # At the time it was saved.
            self.set_clock(self._clock_offset or 0.0)
        else:
            # Later than sshd: everything that the boot starts. A failed unit is the test's to judge.
            self.try_run("systemctl is-system-running --wait")

    def _command(self, *, resumes: bool) -> list[str]:
        mac = self._identity.hex[:6]
        mac = ":".join(mac[index : index + 2] for index in (0, 2, 4))
        serial = self._identity.hex[:16]
        rtc = "utc" if self._clock_offset is None else _rtc(time.time() + self._clock_offset)
        forwards = [f"hostfwd=tcp:127.0.0.1:{port}-:22" for port in (self._ssh_port, self._port)]
        command = ["qemu-system-x86_64", *_OPTIONS, "-m", str(self._memory), "-uuid", str(self._identity)]
        command += ["-rtc", f"base={rtc},clock=host", "-kernel", str(self.image.path / "vmlinuz")]
        command += ["-initrd", str(self.image.path / "initrd.img")]
        command += ["-append", f"{_KERNEL.format(tsc_khz=_tsc_khz())} systemd.hostname={self.name}"]
        command += ["-drive", f"file={self._disk},if=none,id=disk,format=qcow2,cache=writeback,discard=unmap"]
        command += ["-device", f"virtio-blk-pci,drive=disk,serial={serial}"]
        command += ["-netdev", f"user,id=net0,{forwards[0]}"]
        command += ["-device", f"virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:{mac}"]
        command += ["-netdev", f"user,id=net1,net=10.0.3.0/24,restrict=on,{forwards[1]}"]
        command += ["-device", f"virtio-net-pci,id=nic1,netdev=net1,mac=52:54:01:{mac}"]
        command += ["-serial", f"file:{self._console}"]
        command += ["-qmp", f"unix:{self._monitor_path},server=on,wait=off"]
        if resumes:
            assert self._state is not None
            command += ["-incoming", f"exec:cat '{self._state / 'memory'}'"]
        return command

    def _goes_on(self) -> bool:
        """Let a machine that was saved while stopped run on, once its memory is here."""
        self._check_alive()
        try:
            if self.monitor("query-status")["status"] == "inmigrate":
                return False
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        self.monitor("cont")
        return True

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"QEMU ended: {(self.directory / 'qemu.log').read_text(errors='replace')[-2000:]}")
        if "Kernel panic" in self.console():
            raise AssertionError(f"{self.name}'s kernel panics: {self.console()[-2000:]}")

    def _answers(self) -> bool:
        self._check_alive()
        try:
            return self.try_run("true", seconds=30).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def cut(self) -> None:
        """See :class:`host.Host`."""
        self._hang_up()
        host.end_process(self._process)
        self._process = None
        Path(self._monitor_path).unlink(missing_ok=True)

    @property
    def is_on(self) -> bool:
        """See :class:`host.Host`."""
        return self._process is not None and self._process.poll() is None

    def wait_off(self) -> None:
        """See :class:`host.Host`."""
        assert self._process is not None
        self._hang_up()
        try:
            self._process.wait(host.PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not shut down: {self.console()[-3000:]}") from None
        finally:
            self.cut()

    def _hang_up(self) -> None:
        if self._port:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command = ["ssh", "-o", f"ControlPath={self._control_path}", "-O", "exit", "root@127.0.0.1"]
                subprocess.run(command, capture_output=True, timeout=10, check=False)
            Path(self._control_path).unlink(missing_ok=True)

    def console(self) -> str:
        """What the kernel and PID 1 wrote to the console."""
        return self._console.read_text(errors="replace")

    @property
    def _console(self) -> Path:
        return self.directory / "console.log"

    # --- what is taken away ----------------------------------------------------------------------------------------

    def set_network(self, *, up: bool) -> None:
        """See :class:`host.Host`."""
        self.monitor("set_link", name="nic0", up=up)

    def set_clock(self, offset: float, *, at_boot: bool = False) -> None:
        """See :class:`host.Host`."""
        self._clock_offset = offset or None
        if not at_boot:
            self.run(f"date -s @{time.time() + offset:.3f}")

    @property
    def _monitor_path(self) -> str:
        return f"/tmp/agentina-vm-qmp-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]}"

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Ask QEMU (QMP); returns its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(host.PATIENCE)
            connection.connect(self._monitor_path)
            stream = connection.makefile("rw")
            stream.readline()
            answer: Any = None
            for document in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                stream.write(json.dumps(document) + "\n")
                stream.flush()
                # Events come in between.
                while "return" not in (answer := json.loads(stream.readline())):
                    assert "error" not in answer, answer
            return answer["return"]

    def save(self, directory: Path) -> None:
        """Stop, and keep disk and memory in ``directory``; the machine is off afterwards."""
        self.run("sync; echo 3 > /proc/sys/vm/drop_caches")
        self._hang_up()
        self.monitor("stop")
        self.monitor("migrate", uri=f"exec:cat > '{directory / 'memory'}'")
        status = host.wait_for(self._migrated, f"{self.name} is saved", pause=0.2)
        assert status == "completed", status
        self.monitor("quit")
        assert self._process is not None
        self._process.wait(host.PATIENCE)
        self.cut()
        # With what it stands on, so that a saved machine depends on the image alone.
        backing = f"{self.image.disk}"
        _run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", self._disk)
        shutil.move(self._disk, directory / "disk.qcow2")

    def _migrated(self) -> str | None:
        status = self.monitor("query-migrate").get("status")
        return status if status in {"completed", "failed"} else None


def saved(image: images.Image, what: str, prepare: Callable[[Machine], object] | None = None) -> Path:
    """A directory with disk and memory of a machine after boot and ``prepare``, made when it is not in the cache.

    ``what`` has to change when ``prepare`` or anything that it installs does.
    """
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (host,)) + Path(__file__).read_bytes()
    key = hashlib.sha256(sources + f"{image.path}:{what}".encode()).hexdigest()[:16]
    final = images.cache() / f"saved-{key}"
    with images.locked(images.cache() / f"saved-{key}.lock"):
        if not final.exists():
            with images.staged(final) as directory:
                below = saved(image, "") if prepare is not None else None
                with Machine(image, directory / "run", state=below, identity=_SAVED) as machine:
                    if prepare is not None:
                        prepare(machine)
                    machine.save(directory)
                shutil.rmtree(directory / "run")
    return final


@functools.cache
def _tsc_khz() -> int:
    """Rate of the processor's time stamp counter, which is what a guest sees of it."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
    page.write(b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3")
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def look() -> tuple[int, int]:
        """Nanoseconds and count of one moment: the look that was interrupted least."""
        looks = []
        for _ in range(100):
            before, count, after = time.monotonic_ns(), counter(), time.monotonic_ns()
            looks.append((after - before, (before + after) // 2, count))
        _, moment, count = min(looks)
        return moment, count

    first = look()
    time.sleep(0.05)
    second = look()
    return round((second[1] - first[1]) * 1_000_000 / (second[0] - first[0]))


def _rtc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)

"""One real host, as a test sees it: run a command, move a file, and take things away from it.

Two backends keep this interface: :mod:`tests.vm.machine` (a virtual machine: memory limits, power cuts and clocks are
real, the processor is emulated) and :mod:`tests.vm.container` (systemd as PID 1 at native speed; limits of memory,
processor and processes do not hold there, and it shares the machine's clock).
"""

from __future__ import annotations

import abc
import contextlib
import io
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.vm import images

#: Seconds any single thing may take under emulation on a slow and busy machine. It ends a hang, nothing else.
PATIENCE = 600.0
# In steps, for fallocate needs long extents and leaves to root what is reserved. A file system that allocates when it
# writes back promises room that it has not got, and gives room back when its journal is written: so the disk is full
# when new files of one block cannot be made durable, five times with a flush in between.
_FILL: Final = """
for size in 256M 16M 1M 64K; do i=0; while fallocate -l $size /.filler.$size.$i 2>/dev/null; do i=$((i+1)); done; done
full=0; i=0
while [ $full -lt 5 ]; do
    i=$((i+1)); [ $i -lt 500 ] || exit 1
    if dd if=/dev/zero of=/.filler.block.$i bs=4K count=1 conv=fsync 2>/dev/null; then
        full=0; cat /dev/zero > /.filler.rest.$i 2>/dev/null
    else
        full=$((full+1))
    fi
    sync
done
"""
#: Processes of hosts that are up, which outlive the test that started them.
PROCESSES: set[int] = set()


class CommandError(AssertionError):
    """A command that had to succeed did not; the text has what it said."""


class Host(abc.ABC):
    """A booted host; a context manager that takes it down."""

    #: Name of the backend.
    kind: str
    #: Whether the kernel limits memory, processor time, IO and processes of a unit here.
    has_limits: bool

    def __init__(self, image: images.Image, directory: Path, *, name: str) -> None:
        """``directory`` is the host's own and is left with its disk, logs and sockets when it is closed."""
        self.image = image
        self.directory = directory
        self.name = name

    # --- commands and files ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def argv(self, script: str) -> list[str]:
        """The command on this machine that runs ``script`` with bash as root in there."""

    def try_run(
        self, script: str, *, user: str = "root", text: str | bytes = "", seconds: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run ``script`` with bash; ``text`` is its stdin."""
        if user != "root":
            script = f"runuser -u {user} -- bash -c {shlex.quote(script)}"
        raw = text.encode() if isinstance(text, str) else text
        # In a session of its own: what it does to its process group it does to itself alone.
        done = subprocess.run(
            self.argv(script), input=raw, capture_output=True, timeout=seconds, check=False, start_new_session=True
        )
        out, err = (stream.decode(errors="surrogateescape") for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(script, done.returncode, out, err)

    def run(self, script: str, *, user: str = "root", text: str | bytes = "", seconds: float = PATIENCE) -> str:
        """The stdout of a script that must succeed.

        Raises:
            CommandError: It did not.

        """
        done = self.try_run(script, user=user, text=text, seconds=seconds)
        if done.returncode != 0:
            said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            raise CommandError(f"{self.name}: {script[:300]}: exit code {done.returncode}\n{said}")
        return done.stdout

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """Start ``script`` and do not wait; the caller ends what it started."""
        return subprocess.Popen(
            self.argv(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def put(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Write a file there; ``source`` is its content, or a file or directory of this machine."""
        if isinstance(source, bytes):
            quoted = shlex.quote(target)
            self.run(f"mkdir -p $(dirname {quoted}) && cat > {quoted} && chmod {mode:o} {quoted}", text=source)
        elif source.is_file():
            self.put(source.read_bytes(), target, mode=mode)
        else:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(source, arcname=".")
            self.run(f"mkdir -p {shlex.quote(target)} && tar -x -C {shlex.quote(target)}", text=packed.getvalue())

    def get(self, path: str) -> bytes:
        """The content of a file there."""
        return self.run(f"cat {shlex.quote(path)}").encode(errors="surrogateescape")

    def wait(self, script: str, what: str, *, seconds: float = PATIENCE) -> str:
        """Poll until ``script`` succeeds; returns its stdout."""

        def succeeded() -> str | None:
            done = self.try_run(script)
            return done.stdout or "\n" if done.returncode == 0 else None

        return str(wait_for(succeeded, f"{self.name}: {what}", seconds=seconds))

    # --- power -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def power_on(self) -> None:
        """Power on, and do not wait."""

    @abc.abstractmethod
    def wait_up(self) -> None:
        """Wait until commands can be run and all that a boot starts was started."""

    def boot(self) -> None:
        """Power on, and wait."""
        self.power_on()
        self.wait_up()

    @abc.abstractmethod
    def cut(self) -> None:
        """Take the power away, at once."""

    @property
    @abc.abstractmethod
    def is_on(self) -> bool:
        """Whether it runs; one that restarts itself goes off, and is to be booted."""

    @abc.abstractmethod
    def wait_off(self) -> None:
        """Wait until it has gone off by itself."""

    def shut_down(self) -> None:
        """An orderly power-off; returns when it is off."""
        self.try_run("systemctl poweroff --no-block")
        self.wait_off()

    def power_cut(self) -> None:
        """Power off and on again."""
        self.cut()
        self.boot()

    def reboot(self) -> None:
        """An orderly restart."""
        self.shut_down()
        self.boot()

    def close(self) -> None:
        """Take it down for good."""
        self.cut()

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what is taken away from it --------------------------------------------------------------------------------

    @abc.abstractmethod
    def set_network(self, *, up: bool) -> None:
        """Pull or plug the cable of its only way to the control plane; commands go on to work."""

    @abc.abstractmethod
    def ssh(self) -> tuple[str, int]:
        """Address and port of its sshd, as this machine reaches it; root's key is the image's."""

    def fill_disk(self) -> None:
        """Take all room of the root file system, also what is reserved for root.

        Raises:
            CommandError: There is still room: something goes on to give room back.

        """
        self.run(_FILL)

    def free_disk(self) -> None:
        """Give back what :meth:`fill_disk` took."""
        self.run("rm -f /.filler.*; sync")

    @abc.abstractmethod
    def set_clock(self, offset: float, *, at_boot: bool = False) -> None:
        """Make its wall clock wrong by ``offset`` seconds: now, or (``at_boot``) from the next start on.

        Raises:
            NotImplementedError: It has no clock of its own.

        """


def wait_for(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE, pause: float = 0.1) -> Any:
    """Poll ``condition`` (another machine's state has no event) until it is truthy, and return its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


def start_process(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a host's process, which may outlive the test that starts it."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    PROCESSES.add(process.pid)
    return process


def end_process(process: subprocess.Popen[bytes] | None) -> None:
    """Kill a host's process."""
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    PROCESSES.discard(process.pid)

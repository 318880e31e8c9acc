"""Boot one real host, and run commands or a shell in it: ``python -m tests.vm.shell --help``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.vm import container, host, images, machine


def main() -> int:
    """Boot, do what was asked, take it down; the exit code is the command's."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.shell", description=__doc__)
    parser.add_argument("--kind", choices=("container", "vm"), default="container")
    parser.add_argument("--suite", default="bookworm", choices=images.SUITES)
    parser.add_argument("--boot", action="store_true", help="boot the machine instead of resuming a saved one")
    parser.add_argument(
        "--put", action="append", default=[], metavar="HERE:THERE", help="copy a file or directory first"
    )
    parser.add_argument("command", nargs="*", help="a script for bash; without one: an interactive shell")
    wanted = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agentina-vm-") as directory, make(wanted, Path(directory)) as made:
        address, port = made.ssh()
        ready = f"{wanted.kind} is up after {time.monotonic() - started:.1f} s"
        print(f"{ready}: ssh -p {port} -i {made.image.ssh_key} root@{address}", file=sys.stderr)
        for pair in wanted.put:
            here, _, there = pair.partition(":")
            made.put(Path(here), there, mode=Path(here).stat().st_mode & 0o777)
        command = made.argv(" ".join(wanted.command) or "exec bash --login -i")
        if not wanted.command and wanted.kind == "vm":
            command.insert(1, "-t")
        return subprocess.run(command, check=False).returncode


def make(wanted: argparse.Namespace, directory: Path) -> host.Host:
    """The host that was asked for, not yet booted."""
    image = images.base(wanted.suite)
    if wanted.kind == "container":
        return container.Container(image, directory)
    return machine.Machine(image, directory, state=None if wanted.boot else machine.saved(image, ""))


if __name__ == "__main__":
    sys.exit(main())

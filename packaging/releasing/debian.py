"""Debian packages, made with dpkg-deb from a table of what goes where.

Two packages: ``agentina`` for hosts and people, and ``agentina-control-plane``, which adds the server's libraries and
unit to the very same version. Building the same sources twice gives the same bytes: every file is dated with the
sources' date, owned by root, and has its permissions from here.
"""

from __future__ import annotations

import dataclasses
import email.utils
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from releasing import manual, tree, wheels

_BASE: Final = "usr/lib/agentina"
_SERVER: Final = "usr/lib/agentina-control-plane"
_UNITS: Final = "usr/lib/systemd/system"
_DOCUMENTS: Final = "usr/share/doc"
#: Bits of a file's permissions that say it is a program.
_EXECUTABLE: Final = 0o111


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to build."""

    source: Path
    #: As Python has it (PEP 440).
    version: str
    #: Debian's name.
    architecture: str
    #: Seconds since 1970 that every file is dated with.
    epoch: int
    #: Directory to work in; emptied.
    work: Path
    #: Directory for the packages.
    output: Path

    @property
    def packaging(self) -> Path:
        """The directory of everything here."""
        return self.source / "packaging"

    @property
    def debian_version(self) -> str:
        """The version in the order that dpkg has: what comes before a release has a tilde."""
        return re.sub(r"\.?(dev|a|b|rc)(\d+)", r"~\1\2", self.version)


def native_architecture() -> str:
    """Debian's name for this machine."""
    machine = os.uname().machine
    return next((debian for debian, theirs in wheels.ARCHITECTURES.items() if theirs == machine), "amd64")


def build(
    job: Job, *, host: list[wheels.Wheel], native: list[wheels.Wheel], server: list[wheels.Wheel]
) -> Iterator[Path]:
    """Build both packages; paths of the results.

    Args:
        job: What to build.
        host: Libraries of a host.
        native: The same for this machine, which prints the manual pages with them.
        server: What the control plane has besides them.

    """
    shutil.rmtree(job.work, ignore_errors=True)
    yield _build_host(job, host, native)
    yield _build_server(job, server)


def _build_host(job: Job, libraries: list[wheels.Wheel], native: list[wheels.Wheel]) -> Path:
    root = job.work / "agentina"
    tree.build(
        root / _BASE / "release",
        source=job.source,
        version=job.version,
        architecture=job.architecture,
        libraries=libraries,
    )
    for path in sorted((job.packaging / "base").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            _install(path, root / _BASE / path.relative_to(job.packaging / "base"))
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/agentina").symlink_to("../lib/agentina/launch")
    _install_system_files(job, root, "agentina")
    _install_manual(job, root, native)
    _install_documents(job, root, "agentina", libraries)
    return _pack(job, root, "agentina", libraries)


def _build_server(job: Job, libraries: list[wheels.Wheel]) -> Path:
    root = job.work / "agentina-control-plane"
    tree.unpack(libraries, root / _SERVER)
    (root / _SERVER / "notices.txt").write_text(tree.notices(libraries), "utf-8")
    _install_system_files(job, root, "agentina-control-plane")
    _install_documents(job, root, "agentina-control-plane", libraries)
    return _pack(job, root, "agentina-control-plane", libraries)


def _install_system_files(job: Job, root: Path, package: str) -> None:
    """Units, users, directories, rules: by the kind of file, and the package by the beginning of its name."""
    places = {
        ".service": _UNITS,
        ".slice": _UNITS,
        ".target": _UNITS,
        ".path": _UNITS,
        ".timer": _UNITS,
        ".sysusers": "usr/lib/sysusers.d",
        ".tmpfiles": "usr/lib/tmpfiles.d",
        ".rules": "usr/share/polkit-1/rules.d",
    }
    for path in sorted((job.packaging / "systemd").iterdir()):
        is_servers = path.name.startswith("agentina-control-plane")
        if path.suffix in places and is_servers == (package == "agentina-control-plane"):
            name = path.with_suffix(".conf").name if path.suffix in {".sysusers", ".tmpfiles"} else path.name
            _install(path, root / places[path.suffix] / name)
    files = job.packaging / "deb" / package / "root"
    for path in sorted(files.rglob("*")):
        if path.is_file():
            _install(path, root / path.relative_to(files))


def _install_manual(job: Job, root: Path, native: list[wheels.Wheel]) -> None:
    """Manual pages, and completions, which the release itself prints."""
    for page in manual.pages(job.source / "docs"):
        directory = root / f"usr/share/man/man{page.section}"
        directory.mkdir(parents=True, exist_ok=True)
        text = manual.render(page, version=job.version, epoch=job.epoch)
        _write_compressed(directory / f"{page.name}.{page.section}.gz", text.encode())
    release = job.work / "native"
    tree.unpack(native, release)
    path = [
        root / _BASE / "release/lib",
        release / "lib",
        release / f"lib-cp{sys.version_info[0]}{sys.version_info[1]}",
    ]
    if not path[-1].is_dir():
        sys.exit(f"Build with one of these Pythons: {', '.join(wheels.PYTHONS)}.")
    code = f"import sys; sys.path += {[*map(str, path)]}; "
    places = {
        "bash": "usr/share/bash-completion/completions/agentina",
        "zsh": "usr/share/zsh/vendor-completions/_agentina",
        "fish": "usr/share/fish/vendor_completions.d/agentina.fish",
    }
    for shell, place in places.items():
        command = [
            sys.executable,
            "-ISBc",
            code + "from agentina.cli import main; sys.argv[0] = 'agentina'; main.main()",
        ]
        script = subprocess.run([*command, "completion", shell], stdout=subprocess.PIPE, check=True).stdout
        (root / place).parent.mkdir(parents=True)
        (root / place).write_bytes(script)


def _install_documents(job: Job, root: Path, package: str, libraries: Iterable[wheels.Wheel]) -> None:
    directory = root / _DOCUMENTS / package
    directory.mkdir(parents=True)
    date = email.utils.formatdate(job.epoch)
    entry = (
        f"{package} ({job.debian_version}) unstable; urgency=medium\n\n"
        f"  * Release {job.version}. CHANGELOG.md, beside this file, says what changed.\n\n"
        f" -- {_maintainer(job)}  {date.replace('-0000', '+0000')}\n"
    )
    _write_compressed(directory / "changelog.gz", entry.encode())
    _write_compressed(directory / "CHANGELOG.md.gz", (job.source / "CHANGELOG.md").read_bytes())
    own_terms = (job.packaging / "deb/copyright").read_text("utf-8")
    names = dict.fromkeys(f"  {wheel.name} {wheel.version}: {wheel.license_name}\n" for wheel in libraries)
    (directory / "copyright").write_text(f"{own_terms}\n{''.join(names)}", "utf-8")


def _pack(job: Job, root: Path, package: str, libraries: Iterable[wheels.Wheel]) -> Path:
    control = root / "DEBIAN"
    control.mkdir()
    major, minor = max(wheel.glibc for wheel in libraries)
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file()) // 1024
    values = {
        "VERSION": job.debian_version,
        "ARCHITECTURE": job.architecture,
        "INSTALLED_SIZE": str(size),
        "GLIBC": f"{major}.{minor}",
    }
    for path in sorted((job.packaging / "deb" / package).iterdir()):
        if path.is_file():
            text = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], path.read_text("utf-8"))
            (control / path.name).write_text(text, "utf-8")
            (control / path.name).chmod(0o644 if path.name in {"control", "conffiles"} else 0o755)
    contents = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{_md5(path)}  {path.relative_to(root)}\n" for path in contents if control not in path.parents]
    (control / "md5sums").write_text("".join(sums), "utf-8")
    _settle(root, job.epoch)
    job.output.mkdir(parents=True, exist_ok=True)
    target = job.output / f"{package}_{job.debian_version}_{job.architecture}.deb"
    # One thread: more would cut the archive into blocks whose sizes depend on the machine. Level 3: a tenth larger than
    # the usual, and five times as fast.
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--threads-max=1", "--build", str(root), str(target)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(job.epoch)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return target


def _md5(path: Path) -> str:
    """What dpkg --verify compares with."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _settle(root: Path, epoch: int) -> None:
    """Give everything its permissions, whatever the umask was, and its date."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & _EXECUTABLE else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & _EXECUTABLE else 0o644)


def _write_compressed(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, 9, mtime=0))


def _maintainer(job: Job) -> str:
    match = re.search(r"^Maintainer: (.*)$", (job.packaging / "deb/agentina/control").read_text("utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]

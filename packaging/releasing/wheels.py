"""The libraries of a release: wheels from the package index, fetched by pip, each held to a hash of the lock file.

A lock file is a requirements file of pip with exact versions, and for each version the hashes of exactly those wheels
that releases are made of: every supported Python on every supported architecture. Nothing is ever built from source,
so a build runs no code of its libraries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

#: Pythons of the supported systems: Debian 12, Ubuntu 24.04, Debian 13.
PYTHONS: Final = ("3.11", "3.12", "3.13")
#: Debian's name of each architecture, and the wheels'.
ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
#: Newest GNU C library that wheels may ask for; Debian 12 has 2.36.
_GLIBC_MINOR: Final = 36
_LICENSE_FILE: Final = re.compile(r"[^/]+\.dist-info/(?:licenses/.*[^/]|(?:LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*)")


@dataclasses.dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel on disk (PEP 427)."""

    path: Path

    @property
    def _tags(self) -> list[str]:
        return self.path.stem.split("-")[-3:]

    @property
    def name(self) -> str:
        """The project, as the wheel's file name has it."""
        return self.path.name.split("-")[0]

    @property
    def version(self) -> str:
        """The project's version."""
        return self.path.name.split("-")[1]

    @property
    def python(self) -> str | None:
        """``cp311`` when it serves one Python only; None: all of them."""
        interpreter, abi, _ = self._tags
        return interpreter if abi.startswith("cp") else None

    @property
    def glibc(self) -> tuple[int, int]:
        """Oldest GNU C library it runs with (PEP 600); (0, 0) when it has nothing compiled."""
        named = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
        found = [
            named.get(tag.split("_")[0]) or tuple(map(int, re.findall(r"\d+", tag)[:2]))
            for tag in self._tags[2].split(".")
            if tag.startswith("manylinux")
        ]
        return min(((major, minor) for major, minor in found), default=(0, 0))

    @property
    def license_name(self) -> str:
        """The name of its license, as its metadata has it."""
        with zipfile.ZipFile(self.path) as archive:
            text = archive.read(f"{self.name}-{self.version}.dist-info/METADATA").decode()
        match = re.search(r"^License(?:-Expression)?: (.+)$", text, re.MULTILINE)
        return match[1] if match else "see there"

    @property
    def license_text(self) -> str:
        """The terms it comes under, as its metadata and license files say them."""
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if _LICENSE_FILE.fullmatch(name)]
            return "\n".join(archive.read(name).decode("utf-8", "replace") for name in sorted(names))

    @property
    def sha256(self) -> str:
        """Hash of the content, in hex."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def fetch(lock: Path, architecture: str, cache: Path) -> list[Wheel]:
    """The wheels of a lock file for one architecture and every Python, each once, sorted by name.

    They are kept below ``cache`` under the hash of the lock file, and their hashes are checked every time.

    Raises:
        SystemExit: pip failed, or a wheel is not one of the lock file's.

    """
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    allowed = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", lock.read_text("utf-8")))
    found: dict[str, Wheel] = {}
    for python in PYTHONS:
        directory = cache / f"{lock.stem}-{key}" / f"{architecture}-{python}"
        if not directory.is_dir():
            fresh = directory.with_name(f".{directory.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            _download(fresh, python, architecture, ["--no-deps", "--require-hashes", "-r", str(lock)])
            fresh.rename(directory)
        for path in directory.glob("*.whl"):
            found[path.name] = Wheel(path)
    for wheel in found.values():
        if wheel.sha256 not in allowed:
            sys.exit(f"{wheel.path} is not one of the wheels of {lock}; delete it and run this again.")
    return [found[name] for name in sorted(found)]


def lock(requirements: list[str], target: Path, *, rests_on: Path | None = None) -> None:
    """Write a lock file with the newest versions that satisfy ``requirements`` everywhere.

    Args:
        requirements: As in pyproject.toml.
        target: The lock file.
        rests_on: A lock file whose versions are taken as given and not repeated.

    """
    known = _projects(rests_on) if rests_on else {}
    pinned = [f"{name}=={version}" for name, version in known.items()]
    hashes: dict[tuple[str, str], set[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for architecture in ARCHITECTURES:
            for python in PYTHONS:
                into = Path(directory) / f"{architecture}-{python}"
                _download(into, python, architecture, [*requirements, *pinned])
                for path in into.glob("*.whl"):
                    wheel = Wheel(path)
                    hashes.setdefault((wheel.name.replace("_", "-").lower(), wheel.version), set()).add(wheel.sha256)
    names = [name for name, _ in hashes]
    assert len(names) == len(set(names)), f"different versions for different systems: {sorted(hashes)}"
    lines = ["# Written by `make lock`; every wheel that releases are made of, by its hash.\n"]
    for (name, version), values in sorted(hashes.items()):
        if name not in known:
            lines.append(
                " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in sorted(values))]) + "\n"
            )
    target.write_text("".join(lines), "utf-8")


def _projects(lock_file: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock_file.read_text("utf-8"), re.MULTILINE))


def _download(into: Path, python: str, architecture: str, arguments: list[str]) -> None:
    machine = ARCHITECTURES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 4, -1)]
    platforms += [f"manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
    command = [_python_with_pip(), "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--dest", str(into), "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in platforms]
    if subprocess.run([*command, *arguments], check=False).returncode:
        sys.exit(f"pip could not fetch the libraries for Python {python} on {architecture}.")


def _python_with_pip() -> str:
    """This interpreter, or the one its environment was made from, which has pip where the environment has not."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    return f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"

"""The release tree: agentina and its libraries as one directory that any supported Python on one architecture can run.

``lib`` has what every Python reads, ``lib-cpXY`` what was compiled for one; ``version`` and ``digest`` say what it is,
``release.json`` the same and more for programs. There is no virtual environment: the launcher puts two directories on
the path of the system's own Python (docs/adr/0008-releases-without-environments.md).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from releasing import wheels

#: Left out of wheels: sources and headers of what is compiled, types, what only their developers need, and all but the
#: description of what it is.
_LEFT_OUT: Final = re.compile(r".*\.(c|h|pyx|pxd|pxi|pyi|sh)|(.*/)?\.[^/]*|[^/]*\.dist-info/(?!METADATA).*")


def version_of(source: Path) -> str:
    """The version that agentina's sources carry."""
    match = re.search(r'^__version__ = "([^"]+)"$', (source / "agentina/__init__.py").read_text("utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]


def build(target: Path, *, source: Path, version: str, architecture: str, libraries: Iterable[wheels.Wheel]) -> None:
    """Make a release at ``target``, which must not exist.

    Args:
        target: The directory to make.
        source: The repository.
        version: What the release calls itself; need not be the sources' own.
        architecture: Debian's name of it.
        libraries: From :func:`wheels.fetch`.

    """
    chosen = list(libraries)
    _copy_agentina(source, target / "lib", version)
    unpack(chosen, target)
    (target / "notices.txt").write_text(notices(chosen), "utf-8")
    digest = digest_of(target)
    about = {
        "version": version,
        "digest": digest,
        "architecture": architecture,
        "pythons": [f"cp{python.replace('.', '')}" for python in wheels.PYTHONS],
        "libraries": {wheel.name: wheel.version for wheel in chosen},
    }
    (target / "release.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", "utf-8")
    (target / "version").write_text(f"{version}\n", "ascii")
    (target / "digest").write_text(f"{digest}\n", "ascii")


def unpack(libraries: Iterable[wheels.Wheel], target: Path) -> None:
    """Unpack wheels below ``target``: into ``lib`` what serves every Python, else into that Python's directory."""
    for wheel in libraries:
        directory = target / (f"lib-{wheel.python}" if wheel.python else "lib")
        with zipfile.ZipFile(wheel.path) as archive:
            for name in archive.namelist():
                if ".data/" in name:
                    raise ValueError(f"{wheel.path.name} wants to put files elsewhere: {name}")
                if not name.endswith("/") and not _LEFT_OUT.fullmatch(name):
                    archive.extract(name, directory)


def notices(libraries: Iterable[wheels.Wheel]) -> str:
    """The terms of all libraries, each once."""
    line = "=" * 80
    texts = {wheel.name: f"{line}\n{wheel.name} {wheel.version}\n{line}\n\n{wheel.license_text}" for wheel in libraries}
    return "\n".join(texts.values())


def digest_of(target: Path) -> str:
    """SHA-256 over names and contents of all files below ``target``."""
    total = hashlib.sha256()
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{content}  {path.relative_to(target)}\n".encode())
    return total.hexdigest()


def _copy_agentina(source: Path, library: Path, version: str) -> None:
    project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))
    # Its modules, and the data that the project says belongs to them.
    patterns = ["**/*.py", *project["tool"]["setuptools"]["package-data"]["agentina"]]
    for path in sorted({path for pattern in patterns for path in (source / "agentina").glob(pattern)}):
        new = library / path.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new)
    module = library / "agentina/__init__.py"
    text = module.read_text("utf-8")
    module.write_text(text.replace(f'__version__ = "{version_of(source)}"', f'__version__ = "{version}"'), "utf-8")

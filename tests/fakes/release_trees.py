"""Small releases in their real form: tree and archive by the functions that build real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from agentina.updates import releases
from releasing import archives, tree

ARCHITECTURE = "amd64"


def make(
    path: Path, version: str, *, architecture: str = ARCHITECTURE, pythons: list[str] | None = None
) -> Path:  # fmt: skip
    """A release's tree at ``path``."""
    contents = {
        "lib/agentina/__init__.py": f'__version__ = "{version}"\n', "lib/other/data.txt": "x" * 5000,
        f"lib-{releases.python_tag()}/compiled.so": "\x7fELF", "notices.txt": "terms\n",
    }  # fmt: skip
    for name, text in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    digest = tree.digest_of(path)
    about = {
        "version": version, "digest": digest, "architecture": architecture, "libraries": {},
        "pythons": pythons or [releases.python_tag()],
    }  # fmt: skip
    (path / "release.json").write_text(json.dumps(about))
    (path / "version").write_text(f"{version}\n")
    (path / "digest").write_text(f"{digest}\n")
    return path


def archive(directory: Path, version: str, *, architecture: str = ARCHITECTURE) -> Path:
    """A release's archive below ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / f"tree-{version}", ignore_errors=True)
    target = directory / f"agentina-{version}-{architecture}.tar.gz"
    grown = make(directory / f"tree-{version}", version, architecture=architecture)
    archives.pack(grown, target, prefix=version, epoch=1_700_000_000)
    return target

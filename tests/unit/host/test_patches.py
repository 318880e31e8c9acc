from __future__ import annotations

import os
import subprocess
from pathlib import Path

from agentina.host.trees import patches

NAMES = [
    "plain",
    "a b",
    "dir/b/a",
    "é",
    'q"uote',
    "tab\tname",
    "new\nline",
    "back\\slash",
    "x b/x",
    "diff --git a/z b/z",
]


def git(place: Path, *arguments: str) -> bytes:
    environment = {**os.environ, "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(["git", *arguments], cwd=place, env=environment, check=True, stdout=subprocess.PIPE).stdout


def test_paths_of_a_patch_by_git(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("diff --git a/false b/false\n+++ b/false\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 50)
    git(tmp_path, "add", "--all")
    patch = tmp_path / "patch"
    patch.write_bytes(git(tmp_path, "diff", "--cached", "--binary", "--full-index", "--no-renames"))
    assert sorted(patches.changed_paths(patch, most=100)) == sorted([*NAMES, "binary"])
    assert len(patches.changed_paths(patch, most=3)) == 3


def test_empty_patch_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "patch").touch()
    assert patches.changed_paths(tmp_path / "patch", most=3) == []

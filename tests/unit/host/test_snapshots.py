"""Artifacts are found inside the workspace only, and copied as they are."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.host.trees import snapshots
from agentina.protocol import names


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    for name in ("a.txt", "b.log", "out/one.txt", "out/deep/er/two.txt", "out/deep/[x].txt", ".git/config", ".hidden"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.txt").write_text("outside")
    (path / "escape").symlink_to(tmp_path / "secret")
    (path / "key.txt").symlink_to(tmp_path / "secret/key.txt")
    os.mkfifo(path / "fifo.txt")
    return path


def copy(workspace: Path, *patterns: str, limit: int = 1 << 20) -> dict[str, bytes]:
    target = workspace.parent / "artifacts"
    target.mkdir()
    copies = snapshots.copy_matches(workspace, list(patterns), target, limit=limit)
    for copied in copies:
        content = copied.path.read_bytes()
        assert (copied.size, copied.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return {copied.name: copied.path.read_bytes() for copied in copies}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.txt", {"a.txt"}),
        ("./a.txt", {"a.txt"}),
        ("*.txt", {"a.txt"}),
        ("**/*.txt", {"a.txt", "out/one.txt", "out/deep/er/two.txt", "out/deep/[x].txt"}),
        ("out/*.txt", {"out/one.txt"}),
        ("out", {"out/one.txt", "out/deep/er/two.txt", "out/deep/[x].txt"}),
        ("out/**", {"out/one.txt", "out/deep/er/two.txt", "out/deep/[x].txt"}),
        ("out/*/*/two.*", {"out/deep/er/two.txt"}),
        ("out/deep/[[]x].txt", {"out/deep/[x].txt"}),
        ("**/er", {"out/deep/er/two.txt"}),
        (".git/config", {".git/config"}),
        (".h*", {".hidden"}),
        ("nothing/*", set()),
        ("a.txt/x", set()),
        ("escape/*", set()),
        ("escape/key.txt", set()),
        ("key.txt", set()),
        ("fifo.txt", set()),
    ],
)
def test_patterns(workspace: Path, pattern: str, found: set[str]) -> None:
    copies = copy(workspace, pattern)
    assert set(copies) == found
    assert all(content == name.encode() for name, content in copies.items())


def test_file_matched_twice_is_copied_once(workspace: Path) -> None:
    assert set(copy(workspace, "a.txt", "*.txt", "**")) >= {"a.txt"}
    assert len(list((workspace.parent / "artifacts").iterdir())) == 6


def test_copy_is_not_changed_later(workspace: Path) -> None:
    copy(workspace, "a.txt")
    (workspace / "a.txt").write_text("changed")
    assert (workspace.parent / "artifacts/0").read_text() == "a.txt"


def test_size_limit_is_for_all_together(workspace: Path) -> None:
    (workspace / "big1").write_bytes(bytes(600))
    (workspace / "big2").write_bytes(bytes(600))
    with pytest.raises(errors.AgentinaError) as caught:
        copy(workspace, "big*", limit=1000)
    assert caught.value.code == "ARTIFACTS_TOO_LARGE"


def test_number_is_limited(workspace: Path) -> None:
    (workspace / "many").mkdir()
    for number in range(snapshots.MAX_ARTIFACTS):
        (workspace / "many" / str(number)).touch()
    with pytest.raises(errors.AgentinaError, match="too many files"):
        copy(workspace, "many/*")


def test_deep_tree_ends(workspace: Path) -> None:
    here = os.open(workspace, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert "a.txt" in copy(workspace, "**")


@given(
    st.lists(st.text(min_size=1, max_size=300).filter(lambda part: "/" not in part and "\0" not in part), min_size=1)
)
def test_names_are_always_acceptable(parts: list[str]) -> None:
    parts = [part for part in parts if part not in {".", ".."}] or ["x"]
    parts = [part.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for part in parts]
    assert names.check_artifact(snapshots.artifact_name(tuple(parts)))


def test_undecodable_name(workspace: Path) -> None:
    (workspace / os.fsdecode(b"caf\xe9\n.bin")).write_bytes(b"x")
    assert copy(workspace, "caf*") == {"caf%E9%0A.bin": b"x"}


def test_what_is_missing_is_told_by_what_would_be_kept(workspace: Path) -> None:
    (workspace / "empty").mkdir()
    there = ["a.txt", "./out", "out/deep/[x].txt", ".hidden", ".git/config"]
    assert snapshots.find_missing(workspace, there) == []
    missing = ["b.txt", "*.log", "empty", "escape/key.txt", "key.txt", "fifo.txt", "a.txt/below"]
    assert snapshots.find_missing(workspace, [*missing, *there]) == missing
    assert copy(workspace, *map(glob.escape, missing)) == {}

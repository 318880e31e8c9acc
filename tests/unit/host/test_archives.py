"""Archives: what goes in comes out again, and nothing else gets anywhere."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from agentina.host.trees import archives
from agentina.inside import packer

_PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda part: part not in {".", ".."} and len(part.encode()) < 100
)
_TREE = st.dictionaries(st.lists(_PART, min_size=1, max_size=4).map(tuple), st.binary(max_size=2000), max_size=12)


def pack(tree: Path, path: Path, *, limit: int = 1 << 20, whole_lines: bool = False) -> archives.Writer:
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with path.open("w+b") as file:
            writer = archives.Writer(file, limit=limit)
            writer.add_bytes("about", b"first")
            for parts in packer.walk(root):
                writer.add("workspace", root, parts, whole_lines=whole_lines)
            assert writer.close() == path.stat().st_size
    finally:
        os.close(root)
    return writer


def files_of(tree: Path) -> dict[str, tuple[bytes, bool]]:
    return {
        str(path.relative_to(tree)): (path.read_bytes(), os.access(path, os.X_OK))
        for path in tree.rglob("*") if path.is_file()
    }  # fmt: skip


@hypothesis.given(tree=_TREE, executable=st.booleans())
@hypothesis.settings(max_examples=60, deadline=None)
def test_what_is_packed_is_unpacked(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, ...], bytes], *, executable: bool
) -> None:
    base = tmp_path_factory.mktemp("archive")
    source, target = base / "source", base / "target"
    source.mkdir()
    target.mkdir()
    for parts, content in tree.items():
        path = source.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            continue  # one part is a file here and a directory there
        path.chmod(0o755 if executable else 0o640)
    pack(source, base / "one.tar")
    pack(source, base / "two.tar")
    assert (base / "one.tar").read_bytes() == (base / "two.tar").read_bytes()
    archives.unpack(base / "one.tar", {"workspace": target}, limit=1 << 20)
    assert files_of(target) == files_of(source)
    assert archives.read(base / "one.tar", "about", limit=100) == b"first"


@hypothesis.given(content=st.binary(max_size=4096), at=st.integers(0, 4095), byte=st.integers(0, 255))
@hypothesis.settings(max_examples=100, deadline=None)
def test_a_damaged_archive_is_refused_or_unpacked_within_its_place(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, byte: int
) -> None:
    base = tmp_path_factory.mktemp("archive")
    source, target = base / "source", base / "target"
    (source / "a/b").mkdir(parents=True)
    target.mkdir()
    (source / "a/b/c").write_bytes(content)
    (source / "link").symlink_to("a/b")
    pack(source, base / "one.tar")
    damaged = bytearray((base / "one.tar").read_bytes())
    damaged[at % len(damaged)] = byte
    (base / "one.tar").write_bytes(damaged)
    with contextlib.suppress(archives.ArchiveError, OSError):
        archives.unpack(base / "one.tar", {"workspace": target}, limit=1 << 20)
    assert sorted(path.name for path in base.iterdir()) == ["one.tar", "source", "target"]


def test_name_that_is_no_text_can_be_told_when_it_is_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(os.fsencode(tree) + b"/pipe-\xff")
    assert pack(tree, tmp_path / "archive").left_out == ["workspace/pipe-\\xff"]


def test_links_that_stay_are_kept_and_others_left_out(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "below").mkdir(parents=True)
    target.mkdir()
    (source / "file").write_text("x")
    (source / "below/stays").symlink_to("../file")
    (source / "below/out").symlink_to("../../secret")
    (source / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    writer = pack(source, tmp_path / "one.tar")
    assert writer.left_out == ["workspace/absolute", "workspace/below/out", "workspace/pipe"]
    archives.unpack(tmp_path / "one.tar", {"workspace": target}, limit=1 << 20)
    assert (target / "below/stays").read_text() == "x"
    assert sorted(path.name for path in target.rglob("*")) == ["below", "file", "stays"]


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("workspace/../out", tarfile.REGTYPE, ""),
        ("/workspace/out", tarfile.REGTYPE, ""),
        ("workspace//out", tarfile.REGTYPE, ""),
        ("workspace/link", tarfile.SYMTYPE, "../../out"),
        ("workspace/link", tarfile.SYMTYPE, "/etc/passwd"),
        ("workspace/hard", tarfile.LNKTYPE, "workspace/file"),
        ("workspace/device", tarfile.CHRTYPE, ""),
        ("workspace/pipe", tarfile.FIFOTYPE, ""),
        ("workspace", tarfile.REGTYPE, ""),
    ],
)
def test_an_archive_that_leads_out_is_refused(tmp_path: Path, name: str, kind: bytes, link: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member, io.BytesIO())
    with pytest.raises(archives.ArchiveError):
        archives.unpack(tmp_path / "one.tar", {"workspace": target}, limit=1 << 20)
    assert not (tmp_path / "out").exists()
    assert list(target.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A link that stays by its words, and a member below it: the member replaces the link."""
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "link").symlink_to(outside)
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        member = tarfile.TarInfo("workspace/link/file")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    archives.unpack(tmp_path / "one.tar", {"workspace": target}, limit=1 << 20)
    assert list(outside.iterdir()) == []
    assert (target / "link/file").read_bytes() == b"x"
    (target / "other").symlink_to(outside)
    (outside / "kept").write_text("x")
    archives.delete(target, ["other/kept", "link/file", "missing/file"])
    assert (outside / "kept").exists()
    assert not (target / "link/file").exists()


def test_limits(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "large").write_bytes(bytes(100_000))
    with pytest.raises(archives.ArchiveError, match="larger"):
        pack(source, tmp_path / "one.tar", limit=100_000)
    pack(source, tmp_path / "two.tar", limit=110_000)
    with pytest.raises(archives.ArchiveError, match="limit"):
        archives.unpack(tmp_path / "two.tar", {"workspace": target}, limit=99_999)


def test_half_a_line_is_not_taken(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "a.jsonl").write_bytes(b'{"a":1}\n{"b"')
    (source / "b.jsonl").write_bytes(b'{"half"')
    (source / "c.jsonl").write_bytes(b'{"a":1}\n')
    pack(source, tmp_path / "one.tar", whole_lines=True)
    archives.unpack(tmp_path / "one.tar", {"workspace": target}, limit=1 << 20)
    assert {name: content for name, (content, _) in files_of(target).items()} == {
        "a.jsonl": b'{"a":1}\n', "b.jsonl": b"", "c.jsonl": b'{"a":1}\n',
    }  # fmt: skip

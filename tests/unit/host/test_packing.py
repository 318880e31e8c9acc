"""What a packer sends is as hostile as its task: whatever it is, an archive comes of it or a reason why not."""

from __future__ import annotations

import io
import socket
import struct
import tarfile
import threading
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from agentina.host.trees import archives, packing
from agentina.inside import packer

_LETTERS = st.sampled_from([b"F", b"X", b"D", b"L", b"O", b"G", b"!", b".", b"?"])
_NAMES = st.sampled_from([
    b"workspace/a", b"session/b.jsonl", b"workspace/d/e", b"workspace/../up", b"workspace//x", b"manifest.json", b"",
    b"workspace", b"workspace/a\0b", b"/etc/passwd", b"deleted", b"workspace/" + b"d/" * 150 + b"x", b"workspace/\xff",
    b"workspace/l\0a", b"workspace/l\0../../etc", b"workspace/l\0/etc", b"session/s\0b.jsonl",
])  # fmt: skip
_RECORDS = st.lists(st.tuples(_LETTERS, st.one_of(_NAMES, st.binary(max_size=300))), max_size=12)


def record(letter: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">cI", letter, len(content)) + content


def taken(sent: bytes, *, limit: int = 1 << 16) -> bytes:
    """The archive that comes of it."""
    ours, theirs = socket.socketpair()
    file = io.BytesIO()
    writer = archives.Writer(file, limit=limit)

    def send() -> None:
        with theirs:
            try:
                theirs.sendall(sent)
            except OSError:
                return  # refused before its end

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with ours:
            packing.take(packing.Reader(ours, seconds=20.0), writer)
    finally:
        sender.join()
    writer.close()
    return file.getvalue()


END = record(b"G") + record(b".")


@hypothesis.given(records=_RECORDS, tail=st.sampled_from([b"", END, b"F\xff\xff\xff\xff", b"F\0\0"]))
@hypothesis.settings(max_examples=150, deadline=None)
def test_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[bytes, bytes]], tail: bytes
) -> None:
    archive, refusal = b"", ""
    try:
        archive = taken(b"".join(record(*one) for one in records) + tail)
    except archives.ArchiveError as error:
        refusal = str(error)
    if not archive:
        assert refusal.isprintable()
        return
    place = tmp_path_factory.mktemp("taken")
    (place / "t.tar").write_bytes(archive)
    with tarfile.open(place / "t.tar") as opened:
        names = opened.getnames()
    # Once, and last: a second one could say something else.
    assert names.index(packing.DELETED) == len(names) - 1
    (place / "out").mkdir()
    archives.unpack(place / "t.tar", dict.fromkeys(("workspace", "session"), place / "out"), limit=1 << 17)


@pytest.mark.parametrize(("sent", "reason"), [
    (record(b"F", b"workspace/../up") + END, "leads out"),
    (record(b"F", b"manifest.json") + END, "leads out"),
    (record(b"F", b"deleted") + END, "leads out"),
    (record(b"L", b"workspace/../l\0a") + END, "leads out"),
    (record(b"D", b"x") + END, "malformed"),
    (record(b"."), "malformed"),
    (record(b"G") + record(b"F", b"workspace/a") + END, "malformed"),
    (struct.pack(">cI", b"F", packer.MAX_RECORD + 1), "malformed"),
    (record(b"!", b"no \x1b[2J memory"), r"no \?\[2J memory"),
    (record(b"F", b"workspace/a") + record(b"D", bytes(1 << 14)) * 5 + END, "larger than 65536 bytes"),
    (record(b"F", b"workspace/a") + record(b"D", b"half"), "before it had sent everything"),
    (record(b"O", b"workspace/a"), "before it had sent everything"),
])  # fmt: skip
def test_refusals(sent: bytes, reason: str) -> None:
    with pytest.raises(archives.ArchiveError, match=reason):
        taken(sent)


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 5)
    with pytest.raises(archives.ArchiveError, match="more than 5 files"):
        taken(record(b"F", b"workspace/a") * 6 + END)


def test_a_link_that_leads_out_is_left_out(tmp_path: Path) -> None:
    archive = taken(record(b"L", b"workspace/l\0../../etc") + record(b"L", b"workspace/m\0l") + END)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getnames() == ["workspace/m", "deleted"]


def test_half_a_line_of_a_session_is_not_taken(tmp_path: Path) -> None:
    archive = taken(record(b"F", b"session/s.jsonl") + record(b"D", b'{"a":1}\n{"b') + END)
    (tmp_path / "t.tar").write_bytes(archive)
    assert archives.read(tmp_path / "t.tar", "session/s.jsonl", limit=100) == b'{"a":1}\n'

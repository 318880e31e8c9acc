from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agentina.host.work import output

SECRETS = [b"sesame-open", b"open-the-door", b"aaaaaa"]
TEXT = st.lists(st.sampled_from([b"sesame-", b"open", b"-the-", b"door", b"a", b"\xff\n", b"sesame-open"]), max_size=30)


def test_mask_keeps_the_length_and_hides_overlaps() -> None:
    data = b"x sesame-open-the-door aaaaaaaa y"
    masked = output.mask(data, SECRETS)
    assert masked == b"x ******************** ******** y"
    assert output.mask(b"nothing here", SECRETS) == b"nothing here"


def test_held_back_is_the_longest_beginning_of_a_secret() -> None:
    assert output.held_back(b"log in with sesame-op", SECRETS) == len(b"sesame-op")
    assert output.held_back(b"log in", SECRETS) == 0
    assert output.held_back(b"", SECRETS) == 0


@given(TEXT, st.integers(1, 40), st.integers(0, 60))
def test_pieces_are_the_same_wherever_they_begin(parts: list[bytes], most: int, again_at: int) -> None:
    import tempfile  # noqa: PLC0415

    data = b"".join(parts)
    expected = output.mask(data, SECRETS)
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data)
        sent = b""
        while piece := output.read_piece(path, len(sent), SECRETS, final=True, most=most).data:
            sent += piece
        assert sent == expected
        offset = min(again_at, len(data))
        assert output.read_piece(path, offset, SECRETS, final=True, most=most).data == expected[offset : offset + most]


@given(TEXT, st.lists(st.integers(1, 25), max_size=12))
def test_live_pieces_never_show_part_of_a_secret(parts: list[bytes], steps: list[int]) -> None:
    import tempfile  # noqa: PLC0415

    data = b"".join(parts)
    expected = output.mask(data, SECRETS)
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        sent, written = b"", 0
        for step in steps:
            written = min(len(data), written + step)
            path.write_bytes(data[:written])
            sent += output.read_piece(path, len(sent), SECRETS, final=False).data
            assert expected.startswith(sent)
        path.write_bytes(data)
        sent += output.read_piece(path, len(sent), SECRETS, final=True).data
    assert sent == expected


def test_missing_and_truncated_files_have_nothing(tmp_path: Path) -> None:
    assert output.read_piece(tmp_path / "none", 0, [], final=True).data == b""
    (tmp_path / "log").write_bytes(b"ab")
    assert output.read_piece(tmp_path / "log", 5, [b"secret"], final=True).data == b""


def test_link_put_in_place_of_the_output_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"of the host")
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    assert output.read_piece(tmp_path / "log", 0, [], final=True).data == b""


def test_fifo_in_the_place_of_the_output_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "output.log")
    assert output.read_piece(tmp_path / "output.log", 0, [], final=False).data == b""

"""Which paths a patch changes, from its own headers.

Only a header begins with ``diff --git``: lines of content begin with a space, a sign or a backslash, and those of
binary content have no space. Without renames, which our patches have not, both names in it are the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_HEADER: Final = b"diff --git "
_ESCAPE: Final = re.compile(rb"\\([0-7]{3}|.)")
_LETTERS: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
#: Longest header looked at, in bytes: two paths, each byte of them escaped.
_LONGEST: Final = 65_536


def changed_paths(patch: Path, *, most: int) -> list[str]:
    """At most ``most`` paths, in the patch's order. Blocks; call it in a thread.

    Raises:
        OSError: It cannot be read.

    """
    found: list[str] = []
    with patch.open("rb") as file:
        is_begin = True
        while len(found) < most and (line := file.readline(_LONGEST)):
            if is_begin and line.startswith(_HEADER):
                found.append(_path(line.removeprefix(_HEADER).rstrip(b"\n")))
            is_begin = line.endswith(b"\n")
    return found


def _path(names: bytes) -> str:
    """The path in ``a/PATH b/PATH``, or the same in quotes."""
    name = names[: len(names) // 2]
    if name.startswith(b'"'):
        name = _ESCAPE.sub(_unescape, name[1:-1])
    return name[2:].decode("utf-8", "replace")


def _unescape(found: re.Match[bytes]) -> bytes:
    text = found[1]
    return bytes((int(text, 8) & 0xFF,)) if len(text) > 1 else _LETTERS.get(text, text)

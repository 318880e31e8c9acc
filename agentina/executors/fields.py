"""Names and values as netstrings: what the systemd executor and the helpers of the base say to each other in files.

``4:name,5:value,`` and so on; a name may come several times. JSON would say the same, but its module costs each helper
12 ms to load, which is a tenth of a task's way to its start. Standard library only, without imports: the base has this
file too, so it keeps reading what older and newer releases write.
"""

from __future__ import annotations

#: Digits of the longest length taken.
_DIGITS = 9


def encode(pairs: list[tuple[str, str]]) -> bytes:
    """The file's content for ``pairs``."""
    parts = []
    for text in (text for pair in pairs for text in pair):
        data = text.encode("utf-8", "surrogateescape")
        parts.append(b"%d:%b," % (len(data), data))
    return b"".join(parts)


def decode(content: bytes) -> dict[str, list[str]]:
    """Name to values, in their order.

    Raises:
        ValueError: It is not such a file, or a part of one.

    """
    texts = []
    at = 0
    while at < len(content):
        colon = content.find(b":", at, at + _DIGITS + 1)
        if colon < 0 or not content[at:colon].isdigit():
            raise ValueError(f"no length at byte {at}")
        end = colon + 1 + int(content[at:colon])
        if content[end : end + 1] != b",":
            raise ValueError(f"cut off after byte {colon}")
        texts.append(content[colon + 1 : end].decode("utf-8", "surrogateescape"))
        at = end + 1
    if len(texts) % 2:
        raise ValueError("a name without a value")
    found: dict[str, list[str]] = {}
    for name, value in zip(texts[::2], texts[1::2], strict=True):
        found.setdefault(name, []).append(value)
    return found

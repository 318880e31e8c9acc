from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.updates import channels

NOW = "2026-11-21T12:00:00Z"


def release(version: str, *architectures: str) -> channels.Release:
    return channels.Release(
        version=version, title="What is new", built=NOW, notes=f"releases/{version}/notes.md",
        archives={name: f"releases/{version}/{name}" for name in architectures or ("amd64",)},
    )  # fmt: skip


def channel(*names: str) -> channels.Channel:
    made = channels.Channel(channel="beta")
    for name in names:
        made = channels.add(made, release(name))
    return made


def refused(entry: errors.Entry, act: object) -> str:
    assert callable(act)
    with pytest.raises(errors.AgentinaError) as caught:
        act()
    assert caught.value.entry is entry
    return caught.value.message


@given(st.permutations(["1.0.0", "1.1.0", "1.10.0", "2.0.0rc1", "2.0.0"]))
def test_newest_is_first_in_whatever_order_they_came(order: list[str]) -> None:
    newest = channel(*order).newest("amd64")
    assert newest is not None
    assert newest.version == "2.0.0"


def test_newest_is_one_for_the_architecture() -> None:
    made = channels.add(channels.add(channel(), release("1.0.0", "amd64", "arm64")), release("1.1.0", "amd64"))
    newest = made.newest("arm64")
    assert newest is not None
    assert newest.version == "1.0.0"
    assert channel().newest("amd64") is None


def test_withdrawn_release_is_gone_with_its_reason_and_cannot_come_back() -> None:
    made = channels.withdraw(channel("1.0.0", "1.1.0"), "1.1.0", reason="leaks", now=NOW)
    assert [one.version for one in made.releases] == ["1.0.0"]
    assert "leaks" in refused(errors.RELEASE_UNKNOWN, lambda: made.find("1.1.0"))
    refused(errors.STATE_CONFLICT, lambda: channels.add(made, release("1.1.0")))
    refused(errors.RELEASE_UNKNOWN, lambda: channels.withdraw(made, "1.1.0", reason="again", now=NOW))


def test_release_is_in_a_channel_once() -> None:
    refused(errors.STATE_CONFLICT, lambda: channels.add(channel("1.0.0"), release("1.0.0")))


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 501, "\x1b[2J"])
def test_reason_is_one_line_to_read(reason: str) -> None:
    refused(errors.INPUT_INVALID, lambda: channels.withdraw(channel("1.0.0"), "1.0.0", reason=reason, now=NOW))


def test_document_keeps_to_its_bound() -> None:
    made = channel()
    for number in range(channels.MAX_ENTRIES + 5):
        made = channels.add(made, release(f"1.0.{number}"))
    assert len(made.releases) == channels.MAX_ENTRIES
    assert made.releases[0].version == f"1.0.{channels.MAX_ENTRIES + 4}"


def test_document_comes_back_the_same_and_newer_fields_are_skipped() -> None:
    made = channels.withdraw(channel("1.0.0", "1.1.0"), "1.0.0", reason="old", now=NOW)
    content = channels.encode(made)
    assert channels.decode(content, "beta") == made
    more = msgspec.json.encode({**msgspec.json.decode(content), "invented_later": 1})
    assert channels.decode(more, "beta") == made


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"[" * 5000, b'{"channel": "stable"}', b'{"channel": "beta", "format": 2}', b"\xff",
     b'{"channel": "beta", "releases": [{"version": "../..", "title": "", "built": "", "archives": {}, "notes": ""}]}'],
)  # fmt: skip
def test_what_is_no_document_of_the_channel_is_refused(content: bytes) -> None:
    with pytest.raises(errors.AgentinaError):
        channels.decode(content, "beta")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_fault(content: bytes) -> None:
    with pytest.raises(errors.AgentinaError):
        channels.decode(content, "beta")


def test_only_known_channels_have_a_path() -> None:
    assert channels.path_of("enterprise-lts") == "channels/enterprise-lts.json"
    refused(errors.INPUT_INVALID, lambda: channels.path_of("../x"))

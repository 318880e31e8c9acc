from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.control.services import clones
from agentina.protocol import wire

KNOWN = wire.Fingerprint(cpu="c", board="b", disk="d", mac="m", hostname="h")


def judge(seen: wire.Fingerprint, *, known: wire.Fingerprint = KNOWN, boot: str = "2", former: str = "") -> str:
    return clones.suspicion(known=known, seen=seen, boot_id=boot, former_boots=former.split())


@pytest.mark.parametrize("parts", [("hostname",), ("mac",), ("disk", "hostname"), ("mac", "disk"), ("board", "cpu")])
def test_a_part_replaced_is_no_clone(parts: tuple[str, ...]) -> None:
    assert judge(msgspec.structs.replace(KNOWN, **dict.fromkeys(parts, "other"))) == ""


@pytest.mark.parametrize("parts", [("mac", "disk", "hostname"), ("board", "disk"), ("board", "mac")])
def test_another_machine_is_named_by_what_differs(parts: tuple[str, ...]) -> None:
    reason = judge(msgspec.structs.replace(KNOWN, **dict.fromkeys(parts, "other")))
    assert all(part in reason for part in parts)


@given(st.sets(st.sampled_from(sorted(clones.WEIGHTS))), st.sampled_from(["known", "seen"]))
def test_what_is_not_revealed_is_not_compared(hidden: set[str], side: str) -> None:
    bare = msgspec.structs.replace(KNOWN, **dict.fromkeys(hidden, ""))
    pair = {"known": KNOWN, "seen": KNOWN, side: bare}
    assert judge(pair["seen"], known=pair["known"]) == ""


def test_a_boot_that_comes_back_is_a_second_machine() -> None:
    assert judge(KNOWN, boot="1", former="0 1")
    assert not judge(KNOWN, boot="2", former="0 1")
    assert not judge(KNOWN, boot="", former="0 1"), "a host that tells no boot"


def test_every_part_has_a_weight() -> None:
    assert set(clones.WEIGHTS) == set(wire.Fingerprint.__struct_fields__)

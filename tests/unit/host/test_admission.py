from __future__ import annotations

from typing import Any

import pytest

from agentina.host import admission
from agentina.protocol import wire

GIB = 1 << 30
LIMITS = admission.Limits(
    slots=4, licensed_slots=8, memory_reserve=GIB, disk_reserve=GIB, max_memory_pressure=20, max_io_pressure=60
)
FACTS = wire.HostFacts(
    memory_bytes=16 * GIB, memory_free_bytes=12 * GIB, disk_bytes=100 * GIB, disk_free_bytes=50 * GIB
)


def decide(
    facts: wire.HostFacts = FACTS, blocks: list[str] | None = None, limits: admission.Limits = LIMITS, **load: Any
) -> admission.Offer:
    return admission.decide(limits, admission.Load(**{"occupied": 0, "promised_bytes": 0, **load}), facts, blocks or [])


def test_idle_host_offers_everything() -> None:
    assert decide() == admission.Offer(slots=4, memory_bytes=11 * GIB)


def test_memory_is_what_is_neither_promised_nor_used() -> None:
    assert decide(occupied=2, promised_bytes=10 * GIB) == admission.Offer(slots=2, memory_bytes=5 * GIB)


def test_license_caps_the_slots() -> None:
    limits = admission.Limits(
        slots=4, licensed_slots=1, memory_reserve=0, disk_reserve=0, max_memory_pressure=20, max_io_pressure=60
    )
    assert decide(limits=limits).slots == 1
    assert decide(limits=limits, occupied=3).slots == 0


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"disk_free_bytes": GIB - 1}, "disk"),
        ({"pressure": wire.Pressure(memory=20.1)}, "memory pressure"),
        ({"pressure": wire.Pressure(io=61)}, "IO pressure"),
        ({"memory_free_bytes": GIB}, "no memory"),
    ],
)
def test_pressed_host_offers_nothing_and_says_why(facts: dict[str, Any], word: str) -> None:
    import msgspec  # noqa: PLC0415

    offer = decide(msgspec.structs.replace(FACTS, **facts))
    assert offer.slots == 0
    assert word in offer.why


def test_unknown_pressure_holds_nothing_back() -> None:
    assert decide(wire.HostFacts(memory_bytes=GIB * 4, memory_free_bytes=GIB * 4)).slots == 4


@pytest.mark.parametrize("load", [{"uploading": 1000}, {"reports_waiting": 10_000}])
def test_what_waits_on_disk_is_bounded(load: dict[str, Any]) -> None:
    assert decide(**load).slots == 0


def test_blocks_are_all_named() -> None:
    assert decide(blocks=["drained", "quarantined"]).why == "drained; quarantined"


@pytest.mark.parametrize(
    ("held", "now", "replaced"),
    [
        ((0, 0, ""), (1, 5, ""), True),
        ((2, 5, ""), (4, 5, ""), False),
        ((2, 5, ""), (2, 11, ""), True),
        ((2, 5, ""), (0, 50, ""), False),
        ((0, 0, ""), (0, 0, ""), False),
        ((2, 5, ""), (0, 0, "drained"), True),
        ((0, 0, ""), (0, 0, "drained"), False),
    ],
)
def test_waiting_poll_is_replaced_for_something_better_or_nothing(
    held: tuple[int, int, str],
    now: tuple[int, int, str],
    replaced: bool,  # noqa: FBT001
) -> None:
    before, after = (admission.Offer(slots=slots, memory_bytes=memory, why=why) for slots, memory, why in (held, now))
    assert admission.replaces(before, after) is replaced


@pytest.mark.parametrize("blocks", [[], ["drained"]])
def test_poll_is_replaced_when_the_gateway_is_another(blocks: list[str]) -> None:
    load = admission.Load(occupied=0, promised_bytes=0)
    usable, broken = (admission.decide(LIMITS, load, FACTS, blocks, gateway=state) for state in ("", "unusable"))
    assert admission.replaces(usable, broken)
    assert admission.replaces(broken, usable)
    assert not admission.replaces(broken, broken)

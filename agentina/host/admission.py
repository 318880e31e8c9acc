"""How much work to ask for: a pure decision from what the host has free and what holds it back."""

from __future__ import annotations

import dataclasses

from agentina.protocol import jobs, units, wire


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the configuration and the license allow."""

    slots: int
    licensed_slots: int
    memory_reserve: int
    disk_reserve: int
    #: PSI ``some avg10`` in percent.
    max_memory_pressure: float
    max_io_pressure: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What this instance holds now."""

    occupied: int
    #: Memory limits of the tasks that occupy slots, together.
    promised_bytes: int
    #: Tasks that ended and whose output and artifacts are not yet uploaded.
    uploading: int = 0
    reports_waiting: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What is asked for in a poll, and why not more."""

    slots: int
    memory_bytes: int
    #: Empty when nothing but occupied slots holds work back.
    why: str = ""
    #: What there is for jobs that need a gateway.
    gateway: jobs.GatewayState = ""


#: Tasks waiting for upload from which no new ones are taken, and reports likewise: what waits on disk stays bounded.
MOST_UPLOADING = 1000
MOST_REPORTS = 10_000


def decide(
    limits: Limits, load: Load, facts: wire.HostFacts, blocks: list[str], *, gateway: jobs.GatewayState = ""
) -> Offer:
    """The offer for the next poll; ``blocks`` are sentences that forbid any new work (drain, quarantine, …)."""
    most = min(limits.slots, limits.licensed_slots)
    free = max(0, most - load.occupied)
    # Limits are promises: the sum of them must fit. What is really free must be there too, for what others use.
    promised = facts.memory_bytes - limits.memory_reserve - load.promised_bytes
    memory = max(0, min(promised, facts.memory_free_bytes - limits.memory_reserve))
    reasons = [*blocks, *_pressures(limits, load, facts)]
    if not reasons and facts.memory_bytes and memory == 0:
        reasons.append(f"no memory is free beyond the reserve of {units.show_size(limits.memory_reserve)}")
    if reasons:
        return Offer(slots=0, memory_bytes=0, why="; ".join(reasons), gateway=gateway)
    return Offer(slots=free, memory_bytes=memory, gateway=gateway)


def _pressures(limits: Limits, load: Load, facts: wire.HostFacts) -> list[str]:
    found = []
    if facts.disk_bytes and facts.disk_free_bytes < limits.disk_reserve:
        free, reserve = units.show_size(facts.disk_free_bytes), units.show_size(limits.disk_reserve)
        found.append(f"the disk has {free} free; {reserve} must stay")
    for name, value, most in (
        ("memory", facts.pressure.memory, limits.max_memory_pressure),
        ("IO", facts.pressure.io, limits.max_io_pressure),
    ):
        if value > most:
            found.append(f"{name} pressure is {value:.0f} %; the limit is {most:.0f} %")
    if load.uploading >= MOST_UPLOADING:
        found.append(f"{load.uploading} ended tasks wait for their upload")
    if load.reports_waiting >= MOST_REPORTS:
        found.append(f"{load.reports_waiting} reports wait for the control plane")
    return found


def replaces(held: Offer, now: Offer) -> bool:
    """Whether a poll that waits with ``held`` should be replaced by one with ``now``.

    A poll that waits with a free slot returns as soon as there is a job, and the next one offers everything; so more
    slots alone change nothing. No slot before, or clearly more memory (a job may be waiting for just that), does. So
    do a reason to take nothing any more, and a gateway that cannot be used: what came would be given back.
    """
    if now.gateway != held.gateway:
        return True
    if now.slots == 0:
        return held.slots > 0 and bool(now.why)
    return held.slots == 0 or now.memory_bytes > 2 * held.memory_bytes

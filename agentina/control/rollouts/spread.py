"""Who comes next: spread over hosts first, then over zones, and among equals those with the most to show. Pure."""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where an agent is, and how much it did lately."""

    agent: int
    #: Names the machine: instances of one host share it.
    host: str
    #: The label ``zone``; empty: it has none.
    zone: str = ""
    #: Tasks that ended in its recent past; one that does much shows soon whether a release is good.
    tasks: int = 0


def choose(
    candidates: Sequence[Place], *, everybody: Sequence[Place], changed: Collection[int], stage: Collection[int],
    most: int, one_a_host: bool,
) -> list[int]:  # fmt: skip
    """The agents to change next, at most ``most``.

    Args:
        candidates: Who may be chosen.
        everybody: All agents of the rollout, to know how many instances a host and how many agents a zone has.
        changed: Agents that were changed before, in any stage.
        stage: Those of them that were changed in the present stage.
        most: How many to choose.
        one_a_host: Only one instance of a host in this stage; otherwise half of them, rounded down, and at least one.

    """
    instances = collections.Counter(place.host for place in everybody)
    zones = collections.Counter(place.zone for place in everybody)
    changed_on = collections.Counter(place.host for place in everybody if place.agent in changed)
    changed_in = collections.Counter(place.zone for place in everybody if place.agent in changed)
    in_stage = collections.Counter(place.host for place in everybody if place.agent in stage)
    # The first instances of all hosts come before the second ones; within such a round zones take turns by their size.
    busiest = sorted(candidates, key=lambda place: (-place.tasks, place.agent))
    ranked: list[tuple[int, float, str, Place]] = []
    in_round: collections.Counter[tuple[int, str]] = collections.Counter()
    for place in busiest:
        number = changed_on[place.host]
        changed_on[place.host] += 1
        turn = (changed_in[place.zone] + in_round[number, place.zone]) / zones[place.zone]
        in_round[number, place.zone] += 1
        ranked.append((number, turn, place.zone, place))
    chosen: list[int] = []
    for _, _, _, place in sorted(ranked, key=lambda item: item[:3]):
        if len(chosen) >= most:
            break
        if in_stage[place.host] < (1 if one_a_host else max(1, instances[place.host] // 2)):
            in_stage[place.host] += 1
            chosen.append(place.agent)
    return chosen

"""Whether one identity speaks from two machines: the rules, without any I/O.

Two findings, each enough to quarantine the agent, and with it every daemon that has its key, until an operator decides:

- **Drift**: of the fingerprint's parts that both sides reveal, those that differ weigh more than those that do not. A
  new disk or network card, or a new name, is not enough; a copied state directory on another machine is.
- **Return**: a boot id comes back after another one took the session over. A boot never comes back once its machine
  started again, so two machines run. This also finds clones of whole machines, whose fingerprints are alike.

Instances of one host are agents of their own, with a key each: neither rule compares them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from agentina.protocol import wire

#: How much each part says about which machine it is.
WEIGHTS: Final = {"board": 3, "disk": 2, "mac": 2, "cpu": 1, "hostname": 1}


def suspicion(*, known: wire.Fingerprint, seen: wire.Fingerprint, boot_id: str, former_boots: Collection[str]) -> str:
    """Why a session that opens now looks like another machine's than the one before; empty: it does not.

    Args:
        known: What the session before, or the activation, told; all empty: nothing is known.
        seen: What this one tells.
        boot_id: The boot that this one runs in.
        former_boots: Boots whose sessions were taken over by another boot's.

    """
    if boot_id and boot_id in former_boots:
        return "the same identity speaks from two running machines: a boot came back after another took over"
    if drifted := _drift(known, seen):
        return f"the machine changed ({', '.join(drifted)}): its state may have been copied to another one"
    return ""


def _drift(known: wire.Fingerprint, seen: wire.Fingerprint) -> list[str]:
    """The parts that differ, when they weigh more than those that do not."""
    compared = [part for part in WEIGHTS if getattr(known, part) and getattr(seen, part)]
    differing = [part for part in compared if getattr(known, part) != getattr(seen, part)]
    weight = sum(WEIGHTS[part] for part in differing)
    return differing if 2 * weight > sum(WEIGHTS[part] for part in compared) else []

"""Anomalies: findings that stay open until somebody resolves them (docs/explanation/anomalies.md).

A host sends each as one numbered report; the control plane adds up those that are the same in one organization, by
their *fingerprint*: kind, code, release, and the summary without what differs from one time to the next. Pure: what
both sides and the command line must agree on.

States of a group, and what an event makes of them:

============  =========== =========== ======== ======== ========
state         reported    acknowledge answer   close    reopen
============  =========== =========== ======== ======== ========
open          open        acknowledged answered closed   -
acknowledged  acknowledged -          answered closed   open
answered      answered    -           answered closed   open
closed        open        -           -        -        open
============  =========== =========== ======== ======== ========

``-`` is refused with ``STATE_CONFLICT``. What was closed and happens again is open again: it was not resolved.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from typing import Final

from agentina.protocol import redaction, units, wire

#: What kinds there are, and what each means. Further ones may come: a reader takes any word.
KINDS: Final = {
    "release": "a release did not hold on a host and was rolled back",
    "rollout": "a rollout was halted by a gate",
    "configuration": "a configuration from the control plane was refused, or taken back",
    "complaint": "an agent says that something is wrong with its task or its environment",
    "question": "an agent asks an operator something",
    "egress": "a task tried to reach a host it may not reach",
    "budget": "a budget is used up, or a call was refused for it",
    "provider": "a provider of models fails or refuses",
    "path-overlap": "tasks changed the same paths of a repository without saying so",
    "health": "a task is stuck, loops, or goes on after its end",
    "host": "something is wrong with the host",
}


class State(enum.StrEnum):
    """Where an anomaly stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    ANSWERED = "answered"
    CLOSED = "closed"


#: Those that somebody still has to resolve.
UNRESOLVED: Final = (State.OPEN, State.ACKNOWLEDGED, State.ANSWERED)

_O, _ACK, _ANS, _C = State.OPEN, State.ACKNOWLEDGED, State.ANSWERED, State.CLOSED
_AFTER: Final[Mapping[str, Mapping[State, State]]] = {
    "reported": {_O: _O, _ACK: _ACK, _ANS: _ANS, _C: _O},
    "acknowledge": {_O: _ACK},
    "answer": {_O: _ANS, _ACK: _ANS, _ANS: _ANS},
    "close": {_O: _C, _ACK: _C, _ANS: _C},
    "reopen": {_ACK: _O, _ANS: _O, _C: _O},
}


def after(state: State, event: str) -> State | None:
    """The state that ``event`` leads to; None: it is not possible now."""
    return _AFTER[event].get(state)


# --- what is the same ------------------------------------------------------------------------------------------------

#: What differs from one time to the next: ids of ours, UUIDs, long hexadecimal words, temporary paths, numbers.
_VARYING: Final = (
    (re.compile(r"\b[a-z]{3,6}_[0-9a-hjkmnp-tv-z]{12,16}(?:\.\d+)?\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,64}\b"), "<hex>"),
    (re.compile(r"(?:/var)?/tmp/[^\s'\":,;]+"), "<temporary>"),
    (re.compile(r"(?<![a-z0-9_])\d+(?:\.\d+)*(?![a-z0-9_])"), "<n>"),
)
_SPACE: Final = re.compile(r"\s+")
_DIGEST_BYTES: Final = 16


def normalised(text: str) -> str:
    """``text`` without case, spacing, and what differs from one time to the next."""
    text = _SPACE.sub(" ", text.lower()).strip()
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


def fingerprint(found: wire.Anomaly) -> str:
    """By which reports are the same, as hexadecimal."""
    content = "\0".join((found.kind, found.code, found.release, normalised(found.summary)))
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()


# --- what may be said ------------------------------------------------------------------------------------------------


def checked(anomaly: wire.Anomaly) -> wire.Anomaly:
    """The same without credentials, on one line, and with as much evidence as there is room for."""
    room = wire.MAX_EVIDENCE
    evidence: dict[str, str] = {}
    for name, value in list(anomaly.evidence.items())[: wire.MAX_EVIDENCE_ENTRIES]:
        kept = units.shorten(redaction.redact(value), room)
        evidence[name[: wire.MAX_EVIDENCE_NAME]] = kept
        room -= len(kept)
        if room <= 0:
            break
    summary = _SPACE.sub(" ", redaction.redact(anomaly.summary)).strip() or anomaly.code
    return wire.Anomaly(
        id=anomaly.id, kind=anomaly.kind, code=anomaly.code, count=max(anomaly.count, 1),
        first_at_ms=anomaly.first_at_ms, release=anomaly.release, evidence=evidence,
        summary=units.shorten(summary, wire.MAX_SUMMARY),
    )  # fmt: skip

"""Whether agents with the new release do their work worse than before, and than those without it. Pure.

Three gates. Each has two comparisons: of the updated agents with **their own past**, and with agents **not yet
updated** over the same time. Both must say "worse": a slow host is slow before and after, and a night with harder jobs
is hard for all. Where only one can be made (nobody is left without the release; the agents are new) it must find a much
larger difference, and of throughput it says nothing at all: that there is less to do is no fault of a release.

==========  =================================================  ====================  =================================
gate        worse means                                        alone                 and it is no accident
==========  =================================================  ====================  =================================
failures    tasks fail 2 percentage points more often          10 points             a chance below 1 in 100,000
duration    tasks that succeed take 25 % longer (geometric     twice as long         4 standard errors beyond that, at
            mean)                                                                    least 10 tasks on each side
throughput  fewer than half as many tasks end in an hour       not judged            4 standard deviations (Poisson),
                                                                                     at least 20 were to be expected
==========  =================================================  ====================  =================================

The bounds are strict because a rollout is looked at thousands of times.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final

from agentina.control.rollouts import figures
from agentina.protocol import units

_CHANCE: Final = 1e-5
_LEAST_TIMED: Final = 10
#: Durations are never taken to be more alike than this (standard deviation of their logarithms).
_LEAST_SPREAD: Final = 0.1
_FEWER: Final = 0.5
_LEAST_EXPECTED: Final = 20.0
_DEVIATIONS: Final = 4.0
#: Terms of the binomial distribution that are added up; beyond, its normal approximation is as good.
_MOST_TERMS: Final = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """A gate that holds the rollout up."""

    #: ``failures``, ``duration`` or ``throughput``; ``rollbacks``, ``heartbeats``, ``withdrawn`` are the rules'.
    gate: str
    #: A sentence with the figures.
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Margin:
    """How much worse is worse."""

    #: Added to the share of tasks that fail.
    failures: float
    #: Added to the logarithm of the typical duration.
    longer: float
    is_alone: bool


_BOTH: Final = _Margin(failures=0.02, longer=math.log(1.25), is_alone=False)
_ALONE: Final = _Margin(failures=0.1, longer=math.log(2.0), is_alone=True)

#: What is worse about the first than about the second, whose owner is named, in words; empty: nothing; None: there is
#: too little to tell.
_Comparison = Callable[[figures.Sample, figures.Sample, str, _Margin], str | None]


def judge(*, updated: figures.Sample, past: figures.Sample, others: figures.Sample) -> list[Finding]:
    """The gates that hold a rollout up.

    Args:
        updated: Of agents with the new release, since they have it.
        past: Of the same agents, before.
        others: Of agents without it, over about the same time.

    """
    others_by_name = {"the same agents before": past, "agents not updated": others}
    found = []
    for gate, compare in _GATES.items():

        def said(margin: _Margin, compare: _Comparison = compare) -> list[str]:
            texts = [compare(updated, sample, whose, margin) for whose, sample in others_by_name.items()]
            return [text for text in texts if text is not None]

        known = said(_BOTH)
        if len(known) == 1:
            known = said(_ALONE)
        if known and all(known):
            found.append(Finding(gate, "; ".join(known)))
    return found


def _failures(updated: figures.Sample, other: figures.Sample, whose: str, margin: _Margin) -> str | None:
    new, old = updated.figures, other.figures
    if not new.ended or not old.ended:
        return None
    # As if there had been one failure and one success more: a rate that few tasks showed is not taken for certain.
    expected = min((old.failed + 1) / (old.ended + 2) + margin.failures, 1.0)
    if new.failed / new.ended <= expected or chance_of_at_least(new.failed, new.ended, expected) >= _CHANCE:
        return ""
    now, then = (f"{100 * one.failed / one.ended:.1f} % of {units.show_count(one.ended, 'task')}" for one in (new, old))
    return f"{now} failed; of {whose} {then}"


def _duration(updated: figures.Sample, other: figures.Sample, whose: str, margin: _Margin) -> str | None:
    new, old = updated.figures, other.figures
    if min(new.timed, old.timed) < _LEAST_TIMED:
        return None
    error = math.sqrt(_variance(new) / new.timed + _variance(old) / old.timed)
    longer = new.logs / new.timed - old.logs / old.timed
    if longer <= margin.longer + _DEVIATIONS * error:
        return ""
    return f"tasks took {100 * math.expm1(longer):.0f} % longer than those of {whose}"


def _throughput(updated: figures.Sample, other: figures.Sample, whose: str, margin: _Margin) -> str | None:
    if other.agent_seconds <= 0 or margin.is_alone:
        return None
    ended, expected = updated.figures.ended, other.figures.ended * updated.agent_seconds / other.agent_seconds
    if expected < _LEAST_EXPECTED:
        return None
    if ended >= _FEWER * expected or expected - ended <= _DEVIATIONS * math.sqrt(expected):
        return ""
    return f"{units.show_count(ended, 'task')} ended instead of {expected:.0f}, going by {whose}"


_GATES: Final[dict[str, _Comparison]] = {"failures": _failures, "duration": _duration, "throughput": _throughput}


def chance_of_at_least(failed: int, ended: int, rate: float) -> float:
    """The chance that of ``ended`` tasks, which each fail at ``rate``, at least ``failed`` do (binomial)."""
    if failed <= 0 or rate >= 1:
        return 1.0
    if ended > _MOST_TERMS:
        deviation = math.sqrt(ended * rate * (1 - rate))
        return 0.5 * math.erfc((failed - 0.5 - ended * rate) / (deviation * math.sqrt(2)))
    constant = math.lgamma(ended + 1)
    odds, certain = math.log(rate), math.log1p(-rate)
    total = 0.0
    for count in range(failed, ended + 1):
        ways = constant - math.lgamma(count + 1) - math.lgamma(ended - count + 1)
        term = math.exp(ways + count * odds + (ended - count) * certain)
        total += term
        if count > ended * rate and term < total * 1e-9:
            break  # the rest falls faster than geometrically
    return min(total, 1.0)


def _variance(one: figures.Figures) -> float:
    mean = one.logs / one.timed
    return max((one.squares - one.timed * mean * mean) / (one.timed - 1), _LEAST_SPREAD**2)

"""The day turns, by the control plane's clock, while agents are held for a budget of the day: they go on by themselves.

libfaketime puts the control plane just before midnight; the hosts' clocks stay true.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from agentina.protocol import budgets as messages
from tests.acceptance import fleet as fleets
from tests.acceptance import test_budgets as budgets
from tests.acceptance import test_clock as clocks
from tests.fakes import model_provider, procfs

pytestmark = [pytest.mark.slow, clocks.pytestmark]

#: Tokens of a day, tokens that a call uses, and how many calls go: each holds 123 at first.
LIMIT: Final = 500
TOKENS: Final = 50
CALLS: Final = 8


class Bench:
    """A host whose agents use up the budget of each day, and a control plane whose clock is set."""

    def __init__(
        self, fleet: fleets.Fleet, provider: model_provider.ModelProvider, clock: Path, variables: dict[str, str]
    ) -> None:
        self.fleet = fleet
        self.provider = provider
        #: What the control plane is started with, so that it goes by ``clock``.
        self.variables = variables
        self._clock = clock
        #: How far the control plane's clock is ahead, in milliseconds.
        self._ahead_ms = 0

    @property
    def day(self) -> str:
        """The control plane's."""
        return messages.day_of(time.time() * 1000 + self._ahead_ms)

    def go_before_midnight(self, seconds: int) -> None:
        """Set the control plane's clock so that its day ends in so many seconds, and let the host hear of that."""
        now = round(time.time() * 1000)
        self._ahead_ms = messages.next_day_ms(now + self._ahead_ms) - now - seconds * 1000
        self._clock.write_text(f"+{self._ahead_ms / 1000:.3f}\n")
        self.fleet.wait_final(self.fleet.submit(["true"], role="one"))

    def wait_for_midnight(self, day: str) -> None:
        fleets.wait_for(lambda: self.day != day, "the day turns")

    def wait_held(self, job: str) -> None:
        """Wait until a job is held for the budget of the day."""

        def reason() -> str:
            tasks = self.fleet.job(job).tasks
            return tasks[-1].parked if tasks else ""

        assert f"of {LIMIT} tokens of the" in fleets.wait_for(reason, "it is held")

    @property
    def billed(self) -> int:
        """Tokens that count against a budget, as the provider billed them."""
        return budgets.billed(self.provider)

    def wait_billed(self, tokens: int) -> None:
        fleets.wait_for(lambda: self.billed >= tokens, f"{tokens} tokens are billed")

    def used(self) -> dict[str, int]:
        """Tokens by day."""
        rows = self.fleet.document("report", "usage", "--by", "day", "--since", "2020-01-01")["rows"]
        return {row["key"]: budgets.counted(row) for row in rows}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    provider, clock = model_provider.ModelProvider(), tmp_path / "clock"
    fleet = fleets.Fleet(tmp_path, heartbeat_seconds=1.0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(model_provider.in_thread(provider))
        stack.callback(fleet.close)
        variables = clocks.stepping(clock)
        fleet.start_control_plane(variables=variables)
        fleet.install("one", "--role", "one", "--max-concurrent-tasks", "2")
        fleet.add_gateway("one", provider.url)
        fleet.start_daemon("one")
        yield Bench(fleet, provider, clock, variables)


def nothing(bench: Bench, day: str) -> None:
    bench.wait_for_midnight(day)


def daemon_is_away(bench: Bench, day: str) -> None:
    bench.fleet.kill("one")
    bench.wait_for_midnight(day)
    bench.fleet.start_daemon("one")


def gateway_is_killed(bench: Bench, day: str) -> None:
    (gateway,) = procfs.gateways(bench.fleet.root)
    os.kill(gateway, signal.SIGKILL)
    bench.wait_for_midnight(day)


def test_agents_held_for_their_organization_go_on(bench: Bench) -> None:
    """Also where daemon or gateway ended just before: what was used is neither forgotten nor carried over."""
    bench.fleet.answer("budget", "set", "--organization", "default", "--tokens", str(LIMIT), "--on-exhausted", "park")
    job = budgets.submit(bench.fleet, "one", threads=1, most=4 * CALLS - 2)
    days = []
    for happens in (nothing, daemon_is_away, gateway_is_killed):
        days.append(bench.day)
        billed = len(days) * CALLS * TOKENS
        bench.wait_billed(billed)
        bench.wait_held(job)
        bench.go_before_midnight(2)
        happens(bench, days[-1])
        bench.wait_billed(billed + TOKENS)
    view = bench.fleet.wait_final(job)
    assert bench.fleet.output(job) == b"done\n", view
    used = bench.used()
    assert sorted(used) == [*days, bench.day]
    assert [used[day] for day in days] == [CALLS * TOKENS] * 3
    assert sum(used.values()) == bench.billed


def test_a_host_that_is_cut_off_has_its_agent_s_budget_of_the_new_day(bench: Bench) -> None:
    """Nobody else uses that; but what was added for the day before is over."""
    whose = ("--agent", bench.fleet.document("agent", "list")["agents"][0]["id"])
    bench.fleet.answer("budget", "set", *whose, "--tokens", str(LIMIT // 2), "--on-exhausted", "park")
    bench.fleet.answer("budget", "raise", *whose, "--tokens", str(LIMIT // 2))
    job = budgets.submit(bench.fleet, "one", threads=1, most=2 * CALLS)
    bench.wait_held(job)
    first, billed = bench.day, bench.billed
    bench.go_before_midnight(5)
    bench.fleet.kill("control-plane")
    bench.wait_billed(billed + TOKENS)
    assert bench.day > first
    # When that is used it is held again; its host says so.
    told = f"of {LIMIT // 2} tokens of the agent's budget of the day are used"
    fleets.wait_for(lambda: told in bench.fleet.run("status", "--instance", "one").stdout, "it is held again")
    assert bench.billed - billed < LIMIT // 2
    bench.fleet.start_control_plane(variables=bench.variables)
    bench.fleet.answer("budget", "raise", *whose, "--tokens", str(LIMIT))
    bench.fleet.wait_final(job)
    assert bench.fleet.output(job) == b"done\n"
    assert list(bench.used().values()) == [CALLS * TOKENS] * 2

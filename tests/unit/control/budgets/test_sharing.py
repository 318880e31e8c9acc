"""Hosts and a control plane that share a budget: messages are lost, late and repeated, and everybody is killed."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentina.control.budgets import sharing
from agentina.gateway import budgets as gateway_budgets
from agentina.gateway import days, prices, usage
from agentina.protocol import budgets

DAY = "2026-11-21"
LIMIT = 100_000
PRICE = prices.Price(input=1, output=1)
HOSTS = 3


def request(**changes: object) -> sharing.Request:
    nothing = budgets.Units()
    fields = {
        "limit": budgets.Bounds(tokens=LIMIT), "others": nothing, "stored": None, "promise": None, "spent": nothing,
        "held": nothing, "want": nothing, "least": nothing, "is_newest": True, **changes,
    }  # fmt: skip
    return sharing.Request(**fields)  # type: ignore[arg-type]


def test_a_host_gets_what_it_wants_and_a_cushion() -> None:
    divided = sharing.divide(request(want=budgets.Units(tokens=20_000)))
    assert divided.stored.tokens == divided.told.tokens == 30_000
    assert divided.cushion.tokens == 10_000
    assert divided.told.cost_nano is None


def test_the_last_of_a_budget_goes_to_who_asks_for_it() -> None:
    taken = budgets.Units(tokens=95_000)
    divided = sharing.divide(request(others=taken, want=budgets.Units(tokens=20_000)))
    assert (divided.stored.tokens, divided.cushion.tokens) == (5_000, 0)


def test_what_would_be_of_no_use_stays_for_others() -> None:
    divided = sharing.divide(
        request(others=budgets.Units(tokens=99_900), want=budgets.Units(tokens=900), least=budgets.Units(tokens=135))
    )
    assert divided.stored.tokens == 0


def test_what_was_promised_stays_when_the_limit_is_lowered_until_the_host_promises_less() -> None:
    share, spent = budgets.Units(tokens=60_000), budgets.Units(tokens=20_000)
    lowered = budgets.Bounds(tokens=30_000)
    first = sharing.divide(request(limit=lowered, stored=share, promise=share, spent=spent))
    assert (first.stored.tokens, first.told.tokens) == (60_000, 30_000)
    second = sharing.divide(request(limit=lowered, stored=share, promise=budgets.Units(tokens=30_000), spent=spent))
    assert (second.stored.tokens, second.told.tokens) == (30_000, 30_000)


def test_an_old_word_lowers_nothing() -> None:
    stored = budgets.Units(tokens=50_000)
    divided = sharing.divide(request(stored=stored, promise=budgets.Units(), is_newest=False))
    assert divided.stored.tokens >= 50_000


@given(st.integers(0, 200_000), st.integers(0, 200_000), st.integers(0, 200_000), st.integers(0, 200_000))
def test_no_division_hands_out_more_than_there_is(others: int, stored: int, promise: int, want: int) -> None:
    divided = sharing.divide(
        request(
            others=budgets.Units(tokens=others), stored=budgets.Units(tokens=stored),
            promise=budgets.Units(tokens=min(promise, stored)), want=budgets.Units(tokens=want),
        )
    )  # fmt: skip
    assert divided.stored.tokens + others <= max(LIMIT, others + min(promise, stored))
    assert divided.told.tokens is not None
    assert divided.told.tokens <= divided.stored.tokens


@dataclasses.dataclass
class Host:
    """A host: what its gateway has in memory, and what its daemon has on disk."""

    gateway: days.Days
    #: On disk.
    known: days.Known = dataclasses.field(default_factory=days.Known)
    spent: budgets.Units = dataclasses.field(default_factory=budgets.Units)
    number: int = 0
    session: int = 1
    #: Calls under way, with what each holds.
    open: dict[int, gateway_budgets.Charge] = dataclasses.field(default_factory=dict)
    calls: int = 0

    def restart(self) -> None:
        """Gateway and daemon were killed: calls under way are charged in full, as their records say."""
        for charge in self.open.values():
            self.spent += charge.units
        self.open.clear()
        self.session += 1
        self.number = 0
        self.gateway = days.Days(now_ms=now)
        self.gateway.begin({DAY: self.spent}, {})
        if self.known.day:
            self.gateway.learn(self.known, ahead_ms=0, is_away=False)


def now() -> int:
    return 1_795_300_000_000


assert budgets.day_of(now()) == DAY


class Sharing(RuleBasedStateMachine):
    """The organization's budget is never overrun, whatever happens in which order."""

    @initialize()
    def begin(self) -> None:
        self.hosts = [Host(days.Days(now_ms=now)) for _ in range(HOSTS)]
        #: What the control plane has on disk: share, spent, and the newest word.
        self.stored: dict[int, tuple[budgets.Units, budgets.Units, tuple[int, int]]] = {}
        #: Messages that may still arrive, once more too.
        self.under_way: list[tuple[int, budgets.Ask]] = []

    @rule(index=st.integers(0, HOSTS - 1), tokens=st.integers(1, 5_000), output=st.integers(1, 30_000))
    def call(self, index: int, tokens: int, output: int) -> None:
        host = self.hosts[index]
        call = gateway_budgets.Call(input=tokens, output=output, price=PRICE)
        room = host.gateway.look(call)
        if room.problem is None:
            most = output if room.most is None else min(output, room.most)
            host.calls += 1
            host.open[host.calls] = reserved = gateway_budgets.reservation(call, most)
            host.gateway.hold("task", host.calls, reserved, day=host.gateway.today)

    @rule(index=st.integers(0, HOSTS - 1), data=st.data())
    def settle(self, index: int, data: st.DataObject) -> None:
        host = self.hosts[index]
        if host.open:
            number = data.draw(st.sampled_from(sorted(host.open)))
            held = host.open.pop(number)
            used = usage.Usage(output=data.draw(st.integers(0, held.used.counted)))
            charge = gateway_budgets.Charge(used=used, cost_nano=PRICE.cost(used), tool_calls=0)
            host.gateway.settle("task", number, charge)
            host.spent += charge.units

    @rule(index=st.integers(0, HOSTS - 1))
    def ask(self, index: int) -> None:
        """The daemon writes the promise down and sends it; nobody knows when it arrives."""
        host = self.hosts[index]
        want = host.gateway.want()
        share = host.known.organization
        if want.promise is not None and share is not None:
            cap = budgets.Bounds(tokens=min(share.cap.tokens or 0, want.promise.tokens))
            host.known = days.Known(day=DAY, organization=budgets.Share(limit=share.limit, cap=cap, left=share.left))
            host.gateway.learn(host.known, ahead_ms=0, is_away=True)
        host.number += 1
        self.under_way.append(
            (index, budgets.Ask(
                session=host.session, number=host.number, day=DAY, promise=want.promise, spent=want.spent,
                held=want.held, want=want.want, least=want.least,
            ))
        )  # fmt: skip

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), is_kept=st.booleans(), is_heard=st.booleans())
    def arrive(self, data: st.DataObject, *, is_kept: bool, is_heard: bool) -> None:
        """A message arrives, perhaps late, perhaps not for the last time; the answer may be lost."""
        position = data.draw(st.integers(0, len(self.under_way) - 1))
        index, ask = self.under_way[position] if is_kept else self.under_way.pop(position)
        host = self.hosts[index]
        if ask.session != host.session:
            return  # superseded
        known = self.stored.get(index)
        newest = known is None or (ask.session, ask.number) > known[2]
        others = sum(
            (max(share.tokens, spent.tokens) for other, (share, spent, _) in self.stored.items() if other != index), 0
        )
        divided = sharing.divide(
            sharing.Request(
                limit=budgets.Bounds(tokens=LIMIT), others=budgets.Units(tokens=others),
                stored=None if known is None else known[0], promise=ask.promise, spent=ask.spent, held=ask.held,
                want=ask.want, least=ask.least, is_newest=newest,
            )
        )  # fmt: skip
        if newest:
            self.stored[index] = (divided.stored, ask.spent, (ask.session, ask.number))
        # A daemon waits for one answer at a time: that to an earlier question it does not read.
        if is_heard and newest and ask.number == host.number:
            spent = sum(entry[1].tokens for entry in self.stored.values())
            share = budgets.Share(
                limit=budgets.Bounds(tokens=LIMIT), cap=divided.told, cushion=divided.cushion,
                left=budgets.Bounds(tokens=max(0, LIMIT - spent)),
            )  # fmt: skip
            host.known = days.Known(day=DAY, organization=share)
            host.gateway.learn(host.known, ahead_ms=0, is_away=False)

    @rule(index=st.integers(0, HOSTS - 1))
    def kill(self, index: int) -> None:
        self.hosts[index].restart()

    @invariant()
    def nothing_overruns(self) -> None:
        held = sum(sum(charge.used.counted for charge in host.open.values()) for host in self.hosts)
        assert sum(host.spent.tokens for host in self.hosts) + held <= LIMIT
        assert sum(max(share.tokens, spent.tokens) for share, spent, _ in self.stored.values()) <= LIMIT

    @invariant()
    def no_host_believes_in_more_than_is_stored_for_it(self) -> None:
        for index, host in enumerate(self.hosts):
            if host.known.organization is not None:
                assert (host.known.organization.cap.tokens or 0) <= self.stored[index][0].tokens


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)

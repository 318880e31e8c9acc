from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.host import remote
from agentina.host.instance import config
from agentina.protocol import settings, signing, wire
from agentina.system import clock, files
from agentina.system import tasks as background
from tests.fakes import deadlines

AGENT = "3c6f4f0e-0000-4000-8000-000000000001"
KEY = signing.SigningKey.generate()
OWN = config.HostConfig(control_plane="http://localhost", max_concurrent_tasks=4)


class Raised:
    """Takes anomalies as the daemon's do: a name once."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self._names: set[str] = set()

    def report(self, kind: str, code: str, summary: str, *, name: str = "", **_: Any) -> None:
        assert kind == "configuration"
        assert summary
        if not name or name not in self._names:
            self.codes.append(code)
        self._names.add(name)


def full(path: Path, *_: object, **__: object) -> None:
    raise errors.DISK_FULL(path=str(path))


class Later(clock.SystemClock):
    """A clock that can be set on."""

    on = 0.0

    def boot(self) -> float:
        return 1000.0 + self.on


@dataclasses.dataclass
class Bench:
    """A daemon's settings, which may be started again."""

    path: Path
    own: config.HostConfig = OWN
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        self.raised = Raised()
        self.used: list[config.HostConfig] = []
        self.clock = Later()
        self.start()

    def start(self) -> None:
        self.remote = remote.Remote(
            self.path / "configuration.json", self.own, agent_id=AGENT, trusted={KEY.public.id: KEY.public},
            clocks=self.clock,
        )  # fmt: skip
        self.remote.start()
        self.remote.use = self.used.append
        self.remote.facts = lambda: wire.HostFacts(memory_bytes=self.memory_bytes)

    def wait(self, seconds: float) -> None:
        self.clock.on += seconds
        self.remote.tend()

    def obey(self, number: int, *, action: Any = "apply", agent: str = AGENT, **wanted: Any) -> str:
        version = settings.version_of(msgspec.convert(wanted, settings.Settings, strict=False)) if wanted else "cfg-x"
        order = wire.ConfigurationOrder(
            id=f"roll_1.{number}", agent_id=agent, action=action, version=version, settings=wanted
        )
        self.remote.obey(KEY.sign_struct("configuration", order), self.raised)  # type: ignore[arg-type]
        return version

    def leave(self, number: int, version: str) -> None:
        order = wire.ConfigurationOrder(id=f"roll_1.{number}.back", agent_id=AGENT, action="leave", version=version)
        self.remote.obey(KEY.sign_struct("configuration", order), self.raised)  # type: ignore[arg-type]

    @property
    def said(self) -> tuple[str, str, str]:
        report = self.remote.report()
        assert report is not None
        return report.state, report.verdict, report.reason


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_settings_hold_at_once_and_are_promoted_by_a_heartbeat(bench: Bench) -> None:
    assert bench.remote.version == "none"
    version = bench.obey(1, max_concurrent_tasks=2, memory_reserve=1 << 30)
    assert bench.remote.version == version
    assert bench.said == ("on-trial", "", "")
    assert bench.used[-1].max_concurrent_tasks == 2
    assert not bench.remote.confirm("none"), "an answer to what was sent before says nothing"
    assert bench.remote.confirm(version)
    assert bench.said == ("promoted", "good", "")
    bench.start()
    assert (bench.remote.version, bench.remote.effective().memory_reserve) == (version, 1 << 30)
    assert bench.raised.codes == []


def test_what_the_owner_keeps_back_stays(bench: Bench) -> None:
    bench.obey(1, max_concurrent_tasks=100, disk_reserve=0, heartbeat_seconds=5.0)
    held = bench.remote.effective()
    assert (held.max_concurrent_tasks, held.disk_reserve) == (4, OWN.disk_reserve)
    assert bench.remote.heartbeat_seconds == 5.0


def test_an_owner_may_want_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, own=msgspec.structs.replace(OWN, remote_settings=False))
    bench.obey(1, max_concurrent_tasks=2)
    assert (bench.remote.version, bench.remote.report()) == ("", None)
    assert bench.remote.effective() == bench.own
    assert bench.used == []


def test_an_order_is_acted_on_once(bench: Bench) -> None:
    version = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(version)
    bench.leave(1, version)
    bench.obey(1, max_concurrent_tasks=2)
    bench.start()
    bench.obey(1, max_concurrent_tasks=2)
    assert bench.remote.version == "none"
    assert bench.said == ("rolled-back", "good", "")


def test_leaving_goes_back_to_what_held_before(bench: Bench) -> None:
    first = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(first)
    second = bench.obey(2, max_concurrent_tasks=3)
    third = bench.obey(3, max_concurrent_tasks=1)
    assert bench.remote.version == third, "the second was never confirmed, and is nothing to go back to"
    bench.leave(3, second)
    assert bench.remote.version == third, "told to leave what does not hold"
    bench.remote.confirm(third)
    bench.leave(4, third)
    assert (bench.remote.version, bench.used[-1].max_concurrent_tasks) == (first, 2)


@pytest.mark.parametrize("wanted", [{"from_the_future": 1}, {"max_concurrent_tasks": 0}, {"memory_reserve": 8 << 30}])
def test_what_cannot_hold_is_refused_with_a_code_and_raised_once(tmp_path: Path, wanted: dict[str, Any]) -> None:
    bench = Bench(tmp_path, memory_bytes=4 << 30)
    good = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(good)
    order = wire.ConfigurationOrder(id="roll_2.1", agent_id=AGENT, action="apply", version="cfg-bad", settings=wanted)
    for _ in range(2):
        bench.remote.obey(KEY.sign_struct("configuration", order), bench.raised)  # type: ignore[arg-type]
    state, verdict, reason = bench.said
    assert (state, verdict) == ("refused", "bad")
    assert reason in errors.CATALOGUE
    assert bench.remote.version == good
    assert bench.raised.codes == ["CONFIGURATION_LEFT"]


def test_what_daemons_do_not_come_to_a_heartbeat_with_is_left(bench: Bench) -> None:
    good = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(good)
    bad = bench.obey(2, max_concurrent_tasks=1)
    for _ in range(remote.MOST_STARTS - 1):
        bench.start()
        assert bench.remote.version == bad
    bench.start()
    assert bench.remote.version == good
    assert bench.said == ("rolled-back", "bad", "crashed")
    bench.remote.raise_problem(bench.raised)  # type: ignore[arg-type]
    assert bench.raised.codes == ["CONFIGURATION_LEFT"]


def test_what_daemons_run_with_and_do_not_start_with_is_left(bench: Bench) -> None:
    version = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(version)
    for _ in range(remote.MOST_STARTS_AGAIN - 1):
        bench.start()
    assert bench.remote.version == version
    bench.remote.confirm(version)
    for _ in range(remote.MOST_STARTS_AGAIN - 1):
        bench.start()
    assert bench.remote.version == version, "a heartbeat was answered in between"
    bench.start()
    assert bench.remote.version == "none"
    assert bench.said == ("rolled-back", "bad", "crashed")
    bench.start()
    assert bench.said == ("rolled-back", "bad", "crashed")


def test_a_host_without_control_plane_keeps_what_was_proved(bench: Bench) -> None:
    version = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(version)
    for _ in range(3 * remote.MOST_STARTS_AGAIN):
        bench.start()
        bench.wait(remote.STEADY)
    assert bench.remote.version == version
    assert bench.said == ("promoted", "good", "")


@pytest.mark.parametrize(
    ("heard", "verdict", "reason"), [(0.9, "bad", "no-heartbeat"), (0.1, "inconclusive", "control-plane-away")]
)
def test_what_no_heartbeat_is_answered_with_is_left(bench: Bench, heard: float, verdict: str, reason: str) -> None:
    good = bench.obey(1, max_concurrent_tasks=2)
    bench.remote.confirm(good)
    bench.wait(10 * remote.PATIENCE)
    bad = bench.obey(2, max_concurrent_tasks=1)
    bench.wait(heard * remote.PATIENCE)
    bench.remote.contact()
    bench.wait((1 - heard) * remote.PATIENCE - 1)
    assert bench.remote.version == bad
    bench.wait(1)
    assert bench.remote.version == good
    assert bench.used[-1].max_concurrent_tasks == 2
    assert bench.said == ("rolled-back", verdict, reason)


def test_what_cannot_be_left_for_want_of_room_is_left_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = bench.obey(1, max_concurrent_tasks=1)
    with monkeypatch.context() as context:
        context.setattr(files, "write_atomic", full)
        bench.wait(2 * remote.PATIENCE)
        assert bench.remote.version == bad
    bench.wait(remote.PATIENCE)
    assert bench.remote.version == "none"


async def test_somebody_is_told_when_settings_are_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told = asyncio.Event()
    watching = background.start(bench.remote.watch(told.set), name="watch")
    await asyncio.sleep(0)
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    bench.obey(1, max_concurrent_tasks=1)
    await asyncio.wait_for(told.wait(), deadlines.HANG)
    assert bench.said == ("rolled-back", "inconclusive", "control-plane-away")
    await background.cancel(watching)


def test_an_order_nobody_signed_or_for_another_agent_changes_nothing(bench: Bench) -> None:
    other = signing.SigningKey.generate()
    order = wire.ConfigurationOrder(id="a", agent_id=AGENT, action="apply", version="cfg-x", settings={})
    assert not bench.remote.obey(other.sign_struct("configuration", order), bench.raised)  # type: ignore[arg-type]
    assert not bench.remote.obey(KEY.sign_struct("assignment", order), bench.raised)  # type: ignore[arg-type]
    bench.obey(1, agent="another", max_concurrent_tasks=1)
    assert bench.remote.report() is None
    assert set(bench.raised.codes) == {"SIGNATURE_INVALID"}


def test_a_damaged_journal_is_set_aside_and_said_so(bench: Bench) -> None:
    bench.remote.confirm(bench.obey(1, max_concurrent_tasks=2))
    (bench.path / "configuration.json").write_bytes(b'{"current": 7}')
    bench.start()
    assert bench.remote.damage is not None
    assert bench.remote.version == "none"
    bench.start()
    assert bench.remote.damage is None


def test_a_full_disk_changes_nothing_and_the_order_is_taken_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(files, "write_atomic", full)
        bench.obey(1, max_concurrent_tasks=2)
        assert (bench.remote.version, bench.remote.report(), bench.used) == ("none", None, [])
    version = bench.obey(1, max_concurrent_tasks=2)
    assert bench.remote.version == version


orders = st.tuples(st.sampled_from(["apply", "leave", "bad"]), st.integers(1, 3))
steps = st.lists(orders | st.sampled_from(["start", "beat", "wait", "wait-alone"]), max_size=16)


@given(steps)
def test_whatever_happens_something_that_was_proved_can_be_gone_back_to(history: list[Any]) -> None:
    journal, proved = remote.Journal(), {"none"}
    for number, step in enumerate(history):
        if step == "start":
            journal = remote.started(journal, now_ms=number)
        elif step in {"wait", "wait-alone"}:
            journal = remote.waited(journal, is_heard=step == "wait", now_ms=number)
            assert journal.is_proved
        elif step == "beat":
            proved.add(journal.current.version)
            journal = remote.confirmed(journal, now_ms=number)
        else:
            action, tasks = step
            given_ = settings.Settings(max_concurrent_tasks=tasks)
            order = wire.ConfigurationOrder(
                id=str(number), agent_id=AGENT, action="leave" if action == "leave" else "apply", version=f"cfg-{tasks}"
            )
            if action == "bad":
                error = errors.INPUT_INVALID(where="settings", problem="odd")
                journal = remote.refused(journal, order, error, now_ms=number)
            else:
                journal = remote.begin(journal, order, given_, now_ms=number)
            assert journal.id == order.id
        assert journal.previous.version in proved
        assert not journal.is_proved or journal.current.version in proved
        assert journal.starts < (remote.MOST_STARTS_AGAIN if journal.is_proved else remote.MOST_STARTS)
        assert (journal.verdict == "") == (journal.state in {"", "on-trial"})
        assert msgspec.json.decode(msgspec.json.encode(journal), type=remote.Journal) == journal

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import pytest

from agentina import errors
from agentina.gateway import days, record
from agentina.host.instance import session
from agentina.host.work import entries, gates, records, shares, state
from agentina.protocol import budgets, jobs, verbs, wire
from agentina.system import clock
from tests.fakes import executor

NOON_MS: Final = 1_795_262_400_000
TOLD = {
    "AGENTINA_GATEWAY",
    "GEMINI_API_KEY",
    "GOOGLE_GEMINI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "HTTPS_PROXY",
    "NO_PROXY",
    "OPENAI_BASE_URL",
}


def entry_of(tmp_path: Path, **fields: Any) -> entries.Entry:
    job = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}, **fields})
    assignment = wire.Assignment(
        task_id="job_1.1", job_id="job_1", epoch=1, agent_id="a", session=1, poll=1, organization="o", issued_ms=0,
        lease_seconds=60, job=job,
    )  # fmt: skip
    return entries.Entry(
        task_id="job_1.1", directory=records.TaskDirectory(tmp_path), record=b"", assignment=assignment,
        task=state.Task(state.Phase.PREPARING),
    )  # fmt: skip


def gates_of(*, settings: str = "/x/gateway.yaml") -> gates.Gates:
    made = executor.FakeExecutor(executor.FakeKernel({}))

    def no_shares() -> Any:
        raise AssertionError("nothing is served here")

    return gates.Gates(settings, executor=made, rules=lambda: None, note=lambda *_: None, make_shares=no_shares)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, False), ({"budget": {}}, True), ({"budget": {"cost": 1}}, True), ({"scope": {"hosts": ["x"]}}, True),
     ({"scope": {"paths": ["x"]}, "workspace": {"git": "/srv/app"}}, False)],
)  # fmt: skip
def test_a_budget_or_hosts_ask_for_it(tmp_path: Path, fields: dict[str, Any], *, expected: bool) -> None:
    job = entry_of(tmp_path, **fields).job
    assert job is not None
    assert gates.asks(job) is expected


def test_a_job_that_asks_is_told_of_the_way_out_and_keeps_its_own_words(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, budget={}, environment={"NO_PROXY": "mine"})
    dressed = jobs.environment_values(gates_of().dress(entry))
    assert dressed.keys() >= TOLD
    assert (dressed["NO_PROXY"], dressed["ANTHROPIC_API_KEY"]) == ("mine", entry.token)
    assert entry.token not in repr(entry)
    again = jobs.environment_values(gates_of().dress(entry))
    assert again == dressed, "what was written into files at the preparation still holds at the start"


def test_a_job_that_does_not_ask_is_left_as_it_is(tmp_path: Path) -> None:
    entry = entry_of(tmp_path)
    assert gates_of().dress(entry) is entry.job
    assert not entry.token


def test_a_budget_nobody_holds_is_refused_and_a_scope_is_as_before(tmp_path: Path) -> None:
    ours = gates_of(settings="")
    with pytest.raises(errors.AgentinaError) as caught:
        ours.dress(entry_of(tmp_path, budget={"tokens": 1}))
    assert caught.value.code == "GATEWAY_UNUSABLE"
    scoped = entry_of(tmp_path, scope={"hosts": ["example.com"]})
    assert ours.dress(scoped) is scoped.job


def test_a_daemon_without_such_jobs_loads_nothing_of_it() -> None:
    look = (
        "import sys, agentina.host.daemon; print([name for name in sys.modules if name.startswith('agentina.gateway')])"
    )
    found = subprocess.run([sys.executable, "-c", look], stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout == "[]\n"


async def test_what_is_left_today_of_shared_budgets_is_told_beside_the_tasks_own(tmp_path: Path) -> None:
    day = budgets.day_of(NOON_MS)
    entry = entry_of(tmp_path, budget={"tokens": 100})
    entry.models = [budgets.ModelUsage(model="m", day=day, calls=1, input=30)]
    organization = budgets.Share(limit=budgets.Bounds(tokens=900), left=budgets.Bounds(tokens=500))
    agent = budgets.Whole(limit=budgets.Bounds(tokens=200, cost_nano=5 * budgets.DOLLAR))
    known = days.Known(day=day, organization=organization, agent=agent)
    (tmp_path / shares.NAME).write_bytes(msgspec.json.encode({"known": known}))
    now = [NOON_MS]
    kept = shares.Shares(
        tmp_path, sessions=cast("session.Session", None), held=lambda: [entry], now_ms=lambda: now[0],
        clocks=clock.SystemClock(),
    )  # fmt: skip
    ours = gates.Gates(
        "", executor=executor.FakeExecutor(executor.FakeKernel({})), rules=lambda: None, note=lambda *_: None,
        make_shares=lambda: kept,
    )  # fmt: skip
    assert ours.shares is kept
    told = await ours.budget_left(entry)
    assert told is not None
    assert (told.tokens, told.organization_today) == (100, verbs.LeftToday(tokens=500))
    assert told.agent_today == verbs.LeftToday(tokens=170, cost_usd=5.0)
    now[0] += 86_400_000
    told = await ours.budget_left(entry)
    assert told is not None
    assert told.agent_today is None, "yesterday's is nobody's"


async def test_record_of_a_task_that_has_ended_is_read_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(record, "read", lambda _: threads.append(threading.current_thread()))
    await gates_of().before(entry_of(tmp_path, budget={}), state.Do.COLLECT)
    assert threads
    assert threading.main_thread() not in threads

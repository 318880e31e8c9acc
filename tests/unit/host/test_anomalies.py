from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.host.instance import outbox
from agentina.host.work import anomalies
from agentina.protocol import wire
from agentina.system import clock

SECRET = "correct horse battery"


def found(summary: str = "full", *, kind: str = "host") -> wire.Anomaly:
    return wire.Anomaly(id=summary, kind=kind, code="DISK_FULL", summary=summary)


def key(name: str) -> tuple[str, str]:
    return ("", name)


def test_the_same_is_reported_at_once_and_then_counted() -> None:
    limiter = anomalies.Limiter()
    limiter.take(key("a"), found(), 100.0)
    assert limiter.due(100.0) == [("", found())]
    for second in range(30):
        limiter.take(key("a"), found(), 100.0 + second)
        assert limiter.due(100.0 + second) == []
    wait = limiter.wait(130.0)
    assert wait is not None
    assert wait == pytest.approx(anomalies.AGAIN_SECONDS - 30)
    ((_, again),) = limiter.due(130.0 + wait)
    assert again.count == 30
    assert limiter.wait(200.0) is None


def test_different_ones_are_limited_and_none_is_lost() -> None:
    limiter = anomalies.Limiter()
    for number in range(anomalies.BURST + 3):
        limiter.take(key(str(number)), found(str(number)), 100.0)
    assert len(limiter.due(100.0)) == anomalies.BURST
    now = 100.0
    late = []
    while (wait := limiter.wait(now)) is not None:
        now += wait
        late += limiter.due(now)
    assert sorted(one.summary for _, one in late) == [str(anomalies.BURST + number) for number in range(3)]
    assert now == pytest.approx(100 + 3 * anomalies.REFILL_SECONDS)


def test_beyond_what_can_be_remembered_they_are_counted_in_one() -> None:
    limiter = anomalies.Limiter()
    for number in range(anomalies.MAX_KNOWN + 40):
        limiter.take(key(str(number)), found(str(number)), 100.0)
    limiter.due(100.0)
    kept = [one for _, one in limiter.rest()]
    assert len(kept) == anomalies.MAX_KNOWN + 1 - anomalies.BURST
    (left,) = [one for one in kept if one.code == errors.ANOMALIES_LEFT_OUT.code]
    assert left.count == 40
    # Later the first ones are forgotten, and there is room again.
    now = 100.0 + anomalies.AGAIN_SECONDS
    limiter.take(key("new"), found("new"), now)
    assert "new" in [one.summary for _, one in limiter.rest()]


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[outbox.Outbox]:
    opened = await outbox.Outbox.open(tmp_path / "outbox")
    yield opened
    await opened.close()


def raising(box: outbox.Outbox) -> anomalies.Anomalies:
    return anomalies.Anomalies(
        box, secrets_of=lambda task: [SECRET.encode()] if task == "job_1.1" else [], clocks=clock.SystemClock()
    )


async def reports(box: outbox.Outbox) -> list[wire.Report]:
    await box.commit()
    return [msgspec.json.decode(one.body, type=wire.Report) for one in box.first(most=1000, most_bytes=1 << 30)]


async def test_it_is_durable_with_what_shows_it_and_without_secrets(box: outbox.Outbox) -> None:
    raise_ = raising(box)
    raise_.report(
        "complaint", "TASK_COMPLAINT", f"cannot log in with {SECRET}", task_id="job_1.1",
        evidence={"log": f"user {SECRET}\ntoken=abcdef123456"}, release="1.2.3",
    )  # fmt: skip
    (report,) = await reports(box)
    assert (report.kind, report.task_id) == ("anomaly", "job_1.1")
    assert report.anomaly is not None
    text = msgspec.json.encode(report).decode()
    assert SECRET not in text
    assert "abcdef123456" not in text
    assert report.anomaly.summary.startswith("cannot log in with ***")
    assert report.anomaly.release == "1.2.3"
    await raise_.close()


async def test_what_repeats_is_one_report_until_the_end(box: outbox.Outbox) -> None:
    raise_ = raising(box)
    for port in range(20):
        raise_.report("egress", "EGRESS_REFUSED", f"may not reach example.com:{port}", task_id="job_1.1")
    raise_.report("egress", "EGRESS_REFUSED", "may not reach example.com:1", task_id="job_2.1")
    assert len(await reports(box)) == 2, "one for each task"
    await raise_.close()
    first, _, rest = [report.anomaly for report in await reports(box)]
    assert first is not None
    assert rest is not None
    assert (first.count, rest.count) == (1, 19)
    assert first.id != rest.id


async def test_a_name_is_reported_once_by_all_daemons(tmp_path: Path) -> None:
    for _ in range(3):
        box = await outbox.Outbox.open(tmp_path / "outbox")
        raise_ = raising(box)
        raise_.report("release", "UPDATE_ROLLED_BACK", "1.2.3 was rolled back", name="update:1")
        raise_.report("release", "UPDATE_ROLLED_BACK", "1.2.3 was rolled back", name="update:1")
        assert [report.anomaly.id for report in await reports(box) if report.anomaly] == ["update:1"]
        await raise_.close()
        await box.close()


async def test_names_are_remembered_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_FORGET_NAMES", outbox._FORGET_NAMES.replace(str(outbox.MAX_NAMED), "3"))
    box = await outbox.Outbox.open(tmp_path / "outbox")
    assert [box.name(f"n{number}") for number in range(5)] == [True] * 5
    await box.commit()
    await box.close()
    again = await outbox.Outbox.open(tmp_path / "outbox")
    assert again.named == {"n2", "n3", "n4"}
    await again.close()


async def test_a_new_stream_says_waiting_anomalies_again(box: outbox.Outbox) -> None:
    raise_ = raising(box)
    raise_.report("host", "DISK_FULL", "full")
    await box.commit()
    raise_.report("host", "DISK_FULL", "not yet durable")
    box.report("job_1.1", "running")
    box.renew("a test")
    said = await reports(box)
    assert [report.anomaly.summary for report in said if report.anomaly] == ["full", "not yet durable"]
    assert [report.number for report in said] == [1, 2]
    assert box.tasks_waiting() == set(), "an anomaly of the host is of no task"
    await raise_.close()

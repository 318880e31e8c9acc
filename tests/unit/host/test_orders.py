"""What the daemon raises about an update that ended."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import agentina
from agentina.host.instance import outbox
from agentina.host.updating import orders
from agentina.host.work import anomalies
from agentina.protocol import wire
from agentina.system import clock, paths
from agentina.updates import journal
from agentina.updates.journal import Reason, State

NOW = journal.Now(wall_ms=1_000, boot_id="boot-1")


def record(instance: paths.InstancePaths, reason: Reason, *, number: int) -> None:
    content = journal.request(journal.Journal(), version="9.9.9", id=f"roll_1.{number}", linked="0.1.0", now=NOW)
    content = journal.roll_back(content, reason, NOW, detail="it said token=abcdef123456")
    instance.update_journal.parent.mkdir(parents=True, exist_ok=True)
    temporary = instance.update_journal.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(journal.advance(content, State.ROLLED_BACK, NOW)))
    temporary.replace(instance.update_journal)


async def raised(instance: paths.InstancePaths, root: Path) -> list[wire.Anomaly]:
    """What a daemon that starts now reports, and all those before it."""
    box = await outbox.Outbox.open(root / "outbox")
    raising = anomalies.Anomalies(box, secrets_of=lambda _: [], clocks=clock.SystemClock())
    handing_on = orders.Orders(instance, clocks=clock.SystemClock())
    for _ in range(2):
        handing_on.raise_problem(raising)
    await raising.close()
    await box.commit()
    waiting = [msgspec.json.decode(one.body, type=wire.Report) for one in box.first(most=99, most_bytes=1 << 20)]
    await box.close()
    return [report.anomaly for report in waiting if report.anomaly is not None]


async def test_a_bad_update_is_raised_once_by_all_daemons(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    assert await raised(instance, tmp_path) == []
    (instance.updates / "logs").mkdir(parents=True)
    (instance.updates / "logs/9.9.9.log").write_text("x" * 100_000 + "\nsegmentation fault; password=abcdef123456\n")
    record(instance, Reason.CRASHED, number=1)
    (first,) = await raised(instance, tmp_path)
    assert (first.kind, first.code, first.id, first.release) == (
        "release", "UPDATE_ROLLED_BACK", "update:roll_1.1", "9.9.9",
    )  # fmt: skip
    assert first.evidence["reason"] == "crashed"
    assert first.evidence["runs"] == agentina.__version__
    assert "abcdef123456" not in first.evidence["detail"]
    assert "segmentation fault" in first.evidence["log"], "its end"
    assert "abcdef123456" not in first.evidence["log"]
    assert len(await raised(instance, tmp_path)) == 1
    record(instance, Reason.CRASHED, number=2)
    assert [one.id for one in await raised(instance, tmp_path)] == ["update:roll_1.1", "update:roll_1.2"]


@pytest.mark.parametrize(
    "reason", [reason for reason in Reason if journal.REASONS[reason][0] is not journal.Verdict.BAD]
)
async def test_what_says_nothing_against_a_version_is_not_raised(tmp_path: Path, reason: Reason) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    record(instance, reason, number=1)
    assert await raised(instance, tmp_path) == []

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.host.instance import grace

HOUR = 3_600.0


class _Clock:
    def __init__(self) -> None:
        self.wall, self.seconds = 1_700_000_000_000, 1000.0

    def wall_ms(self) -> int:
        return self.wall

    def boot(self) -> float:
        return self.seconds

    def pass_time(self, seconds: float) -> None:
        self.wall += int(seconds * 1000)
        self.seconds += seconds


def test_setting_the_clock_within_a_boot_changes_nothing(tmp_path: Path) -> None:
    clock = _Clock()
    measured = grace.Grace(tmp_path / "grace", boot_id="a", clocks=clock)
    clock.pass_time(HOUR)
    for step in (-86_400_000, 2 * 86_400_000):
        clock.wall += step
        assert measured.used_seconds == pytest.approx(HOUR)


def test_restart_of_the_daemon_goes_on_measuring(tmp_path: Path) -> None:
    clock = _Clock()
    first = grace.Grace(tmp_path / "grace", boot_id="a", clocks=clock)
    clock.pass_time(HOUR)
    first.write()
    clock.pass_time(HOUR)
    clock.wall -= 86_400_000
    assert grace.Grace(tmp_path / "grace", boot_id="a", clocks=clock).used_seconds == pytest.approx(2 * HOUR)


def test_restart_of_the_host_counts_wall_time_but_never_backwards(tmp_path: Path) -> None:
    clock = _Clock()
    first = grace.Grace(tmp_path / "grace", boot_id="a", clocks=clock)
    clock.pass_time(3 * HOUR)
    first.write()
    clock.pass_time(HOUR)
    clock.seconds = 5.0
    assert grace.Grace(tmp_path / "grace", boot_id="b", clocks=clock).used_seconds == pytest.approx(4 * HOUR)
    clock.wall -= 7 * 86_400_000
    assert grace.Grace(tmp_path / "grace", boot_id="b", clocks=clock).used_seconds == pytest.approx(3 * HOUR)


def test_contact_makes_it_whole_again(tmp_path: Path) -> None:
    clock = _Clock()
    measured = grace.Grace(tmp_path / "grace", boot_id="a", clocks=clock)
    clock.pass_time(HOUR)
    measured.contact()
    assert measured.used_seconds == 0


def test_damaged_mark_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "grace").write_bytes(b"\0\0\0")
    assert grace.Grace(tmp_path / "grace", boot_id="a", clocks=_Clock()).used_seconds == 0


@given(st.floats(0, 1e6), st.integers(0, 1 << 45), st.floats(0, 1e9), st.booleans())
def test_used_grace_never_shrinks(used: float, wall: int, boot: float, same_boot: bool) -> None:  # noqa: FBT001
    mark = grace.Mark(boot_id="a", boot_seconds=500.0, wall_ms=1 << 40, used_seconds=used)
    assert grace.used(mark, boot_id="a" if same_boot else "b", boot_seconds=boot, wall_ms=wall) >= used

"""Figures of the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.system import pressure

MEMINFO = "MemTotal:       16000 kB\nMemFree:        1000 kB\nMemAvailable:    9000 kB\nHugePages_Total:       0\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("some avg10=12.50 avg60=1.00 avg300=0.00 total=99\nfull avg10=1.00 avg60=0 avg300=0 total=1\n", 12.5),
        ("full avg10=1.00 avg60=0 avg300=0 total=1\n", pressure.UNKNOWN),
        ("some avg10=x\n", pressure.UNKNOWN),
        ("some avg10=900\n", 100.0),
        ("", pressure.UNKNOWN),
    ],
)
def test_pressure_line(text: str, value: float) -> None:
    assert pressure.parse_some_avg10(text) == value


@given(st.text(), st.text())
def test_parsers_take_anything(before: str, after: str) -> None:
    found = pressure.parse_some_avg10(f"some avg10={before}\n{after}")
    assert found == pressure.UNKNOWN or 0 <= found <= 100
    memory = pressure.parse_meminfo(f"{before}\nMemTotal: {after} kB\n")
    assert 0 <= memory.available <= memory.total


def test_kernel_without_pressure_figures(tmp_path: Path) -> None:
    assert pressure.some_avg10("io", proc=tmp_path) == pressure.UNKNOWN


def test_memory_of_the_host_and_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    group = tmp_path / "group"
    group.mkdir()
    assert pressure.memory(proc=tmp_path, cgroup=group) == pressure.Memory(total=16_384_000, available=9_216_000)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("3000000\n")
    assert pressure.memory(proc=tmp_path, cgroup=group).total == 16_384_000
    (group / "memory.max").write_text("4000000\n")
    assert pressure.memory(proc=tmp_path, cgroup=group) == pressure.Memory(total=4_000_000, available=1_000_000)


def test_this_host() -> None:
    memory = pressure.memory()
    assert 0 < memory.available <= memory.total
    assert pressure.cpus() >= 1
    assert pressure.load1() >= 0


def test_disk_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    found = pressure.disk(tmp_path / "not/yet")
    assert 0 < found.free <= found.total
    assert found.total == pressure.disk(tmp_path).total

"""The faults that tests on real hosts (tests/vm, some seldom run) build into releases fit this code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import variants

SOURCE = Path(__file__).parents[3] / "agentina"


@pytest.mark.parametrize("fault", variants.FAULTS)
def test_fault_can_be_built_into_this_code(fault: str) -> None:
    path = SOURCE / variants.FAULTS[fault][0]
    assert compile(variants.with_fault(path.read_text(), fault), path, "exec")

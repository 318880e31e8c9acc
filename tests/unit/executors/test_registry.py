"""The choice of an executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentina import errors
from agentina.executors import registry


@pytest.mark.parametrize("name", ["auto", "process"])
def test_known_names(tmp_path: Path, name: str) -> None:
    assert registry.choose(name, state_directory=tmp_path).name == "process"


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentinaError, match=r"'docker' is none of auto, process"):
        registry.choose("docker", state_directory=tmp_path)

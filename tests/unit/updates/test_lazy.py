from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["agentina.host.daemon", "agentina.cli.main", "agentina.cli.status"])
def test_updates_cost_an_idle_process_nothing(module: str) -> None:
    """The daemon's memory is decided by its imports."""
    code = f"import sys, {module}; print([m for m in sys.modules if m.split('.')[0] in ('tuf', 'urllib3')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

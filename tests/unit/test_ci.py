"""``.ci/pytest``: a failed test has one more chance, a broken suite has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci/pytest"
#: Fails when it runs for the first time.
ONCE = """
import pathlib
def test_once():
    first = pathlib.Path("once")
    if not first.exists():
        first.touch()
        assert False
    print("said the second time")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with the same layout."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(checkout: Path, **suites: str) -> tuple[int, str, list[str]]:
    """Its exit code, what it printed, and the tests it calls unsteady."""
    for name, text in suites.items():
        (checkout / f"test_{name}.py").write_text(text)
    unsteady = checkout / "unsteady"
    environment = {**os.environ, "UNSTEADY": os.fspath(unsteady), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([SCRIPT], cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, unsteady.read_text().splitlines() if unsteady.exists() else []


def test_suite_that_passes_runs_once(checkout: Path) -> None:
    code, printed, unsteady = run(checkout, good="def test_good(): pass")
    assert (code, unsteady, printed.count("1 passed")) == (0, [], 1), printed


def test_failed_test_runs_again_alone_and_is_named(checkout: Path) -> None:
    code, printed, unsteady = run(checkout, once=ONCE, other="def test_other(): pass")
    assert (code, unsteady) == (0, ["test_once.py::test_once"]), printed
    first, _, second = printed.partition("once more, alone")
    assert "1 failed, 1 passed" in first
    assert "said the second time" in second
    assert "test_other" not in second


def test_who_fails_twice_fails_the_run(checkout: Path) -> None:
    code, printed, unsteady = run(checkout, once=ONCE, bad="def test_bad(): assert False")
    assert (code, unsteady) == (1, []), printed
    assert printed.count("once more, alone") == 1


def test_many_failures_are_no_accident(checkout: Path) -> None:
    code, printed, unsteady = run(
        checkout, **{f"once{number}": ONCE.replace('"once"', f'"{number}"') for number in range(6)}
    )
    assert (code, unsteady) == (1, []), printed
    assert "once more" not in printed


def test_suite_that_did_not_run_whole_has_no_second_chance(checkout: Path) -> None:
    broken = "import pathlib\nif not pathlib.Path('b').exists():\n    pathlib.Path('b').touch()\n    raise OSError\n"
    code, printed, unsteady = run(checkout, broken=broken, once=ONCE)
    assert (code, unsteady) == (2, []), printed
    assert "once more" not in printed

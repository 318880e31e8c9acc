"""Choose what the demo runs: the tests of a real git repository, as far as this machine has what that takes."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any, Final

import agentina
from agentina.system import children

#: Part of agentina's own tests that runs in seconds and needs nothing but its libraries.
_TESTS: Final = ("tests/unit/protocol/test_states.py", "tests/unit/protocol/test_units.py")
_TEST_LIBRARIES: Final = ("pytest", "pytest_asyncio", "hypothesis")
_REPORT: Final = "report/tests.xml"
_OUTPUT: Final = "report/output.txt"

_CALCULATOR: Final = '''"""Arithmetic for the demo."""


def add(left, right):
    return left + right
'''
_CALCULATOR_TEST: Final = """import unittest

import calculator


class AddTest(unittest.TestCase):
    def test_adds(self):
        self.assertEqual(calculator.add(2, 3), 5)

    def test_adds_negative_numbers(self):
        self.assertEqual(calculator.add(2, -3), -1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A job to demonstrate with, and what it does in words."""

    document: dict[str, Any]
    words: str


def choose(scratch: Path) -> Choice:
    """The most telling job this machine can run; ``scratch`` may be used for a repository made on the spot."""
    code, _ = children.run(["git", "--version"])
    if code:
        return plain()
    checkout = Path(agentina.__file__).resolve().parents[1]
    commit = _testable_commit(checkout)
    if commit:
        return own_tests(checkout, commit)
    return made_repository(scratch)


def plain() -> Choice:
    """Without git: a job in an empty directory."""
    script = f"uname -a\nmkdir report\n{shlex.quote(sys.executable)} --version | tee {_OUTPUT}\n"
    words = "There is no git here, so the job has no repository: it tells which machine and Python it runs on."
    return Choice(document=_document("look around", script, {}), words=words)


def own_tests(checkout: Path, commit: str) -> Choice:
    """A part of agentina's own tests, from its own checkout at ``commit``."""
    python = shlex.quote(sys.executable)
    script = (
        f"echo 'Changed by the demo job.' >> CHANGELOG.md\n"
        f"{python} -m pytest -q -p no:cacheprovider --junit-xml={_REPORT} {shlex.join(_TESTS)}\n"
    )
    workspace = {"git": f"file://{checkout}", "ref": commit}
    words = f"It checks out {checkout} at {commit[:12]}, changes a file and runs a part of its tests."
    return Choice(document=_document("agentina's protocol tests", script, workspace), words=words)


def made_repository(scratch: Path) -> Choice:
    """The tests of a small repository made on the spot."""
    repository = scratch / "repository"
    repository.mkdir(parents=True)
    (repository / "calculator.py").write_text(_CALCULATOR)
    (repository / "test_calculator.py").write_text(_CALCULATOR_TEST)
    identity = ["-c", "user.name=agentina demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-q", "-m", "Add numbers"]):
        code, said = children.run(["git", *arguments], directory=repository)
        if code:
            raise OSError(code, f"git {arguments[0]}: {said.strip()}")
    script = (
        f"echo '# Changed by the demo job.' >> calculator.py\nmkdir report\n"
        f"{shlex.quote(sys.executable)} test_calculator.py 2>&1 | tee {_OUTPUT}\n"
        f"! grep -q FAILED {_OUTPUT}\n"
    )
    workspace = {"git": f"file://{repository}", "ref": "main"}
    words = f"It checks out {repository} (made for this), changes a file and runs its tests."
    return Choice(document=_document("calculator tests", script, workspace), words=words)


def _document(name: str, script: str, workspace: dict[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": name,
        "payload": {"script": script},
        "limits": {"timeout": "5m"},
        "artifacts": ["report/*"],
        # The workspace's own modules win over installed ones, and no cache files end up in the patch.
        "environment": {"PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1"},
    }
    return {**document, "workspace": workspace} if workspace else document


def _testable_commit(checkout: Path) -> str:
    """The commit of the checkout that agentina runs from, when its tests can be run here; else nothing."""
    if any(importlib.util.find_spec(library) is None for library in _TEST_LIBRARIES):
        return ""
    code, said = children.run(["git", "rev-parse", "--verify", "HEAD^{commit}"], directory=checkout)
    if code or not (checkout / ".git").exists():
        return ""
    missing = any(children.run(["git", "cat-file", "-e", f"HEAD:{path}"], directory=checkout)[0] for path in _TESTS)
    return "" if missing else said.strip()

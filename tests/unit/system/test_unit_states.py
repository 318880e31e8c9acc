from __future__ import annotations

import subprocess

import pytest

from agentina import errors
from agentina.system import services, unit_states

SHOWN = """\
Id=agentina-task@default-S1.service
ActiveState=active
SubState=running
Result=success
ExecMainCode=0
ExecMainStatus=0
MainPID=171
ActiveEnterTimestampMonotonic=2500000
InactiveExitTimestampMonotonic=2000000

Id=agentina-trial@default.service
ActiveState=failed
Result=exit-code
ExecMainCode=1
ExecMainStatus=70
MainPID=0
Job=12
ActiveEnterTimestampMonotonic=0
InactiveExitTimestampMonotonic=2000000
"""


def test_blocks_are_units() -> None:
    task, trial = unit_states.parse(SHOWN)
    assert (task.name, task.state, task.pid, task.began, task.up) == (
        "agentina-task@default-S1.service", "active", 171, 2.0, 2.5,
    )  # fmt: skip
    assert task.runs
    assert task.was_up
    assert not task.ended
    assert (trial.result, trial.ended, trial.has_job, trial.was_up) == ("exit-code", "exit code 70", True, False)


def test_signal_is_told_from_an_exit() -> None:
    (unit,) = unit_states.parse("Id=a.service\nExecMainCode=2\nExecMainStatus=9\n")
    assert unit.ended == "signal 9"


def test_nothing_is_no_unit() -> None:
    assert unit_states.parse("") == []
    assert unit_states.parse("\n\n") == []


def test_what_systemd_says_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "System has not been booted with systemd as init system (PID 1). Can't operate.\nFailed to connect to bus.\n"
    refused = subprocess.CompletedProcess(["systemctl"], 1, "", said)
    monkeypatch.setattr(services, "call", lambda *_: refused)
    with pytest.raises(errors.AgentinaError, match=r"Can't operate\. Failed to connect to bus\."):
        unit_states.show("agentina@default.service")

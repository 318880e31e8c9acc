"""What the units of updates must have in common with the daemon's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from agentina.host.updating import trials
from agentina.protocol import units

UNITS = Path(__file__).parents[3] / "packaging/systemd"
#: What only one of the two has, and why it is in the one but not in the other is said there.
STABLE_ONLY = {
    "Description", "StartLimitIntervalSec", "StartLimitBurst", "OnFailure", "Wants", "ExecStart", "Restart",
    "RestartSec", "RestartPreventExitStatus", "WantedBy",
}  # fmt: skip
TRIAL_ONLY = {
    "Description", "StartLimitIntervalSec", "Conflicts", "After", "OnFailure", "OnSuccess", "ExecStart", "Restart",
    "RuntimeMaxSec", "MemoryMax", "MemorySwapMax", "OOMPolicy",
}  # fmt: skip


def settings(name: str) -> Counter[tuple[str, str]]:
    lines = (UNITS / name).read_text().splitlines()
    return Counter((line.split("=", 1)[0], line.split("=", 1)[1]) for line in lines if line[:1].isupper())


def test_trial_runs_a_release_as_the_daemons_unit_would() -> None:
    stable, trial = settings("agentina@.service"), settings("agentina-trial@.service")
    assert {key for key, _ in stable - trial} <= STABLE_ONLY
    assert {key for key, _ in trial - stable} <= TRIAL_ONLY
    assert ("Restart", "no") in trial
    assert ("OnFailure", "agentina@%i.service") in trial
    assert ("OnSuccess", "agentina@%i.service") in trial
    assert not any(key == "WantedBy" for key, _ in trial), "a trial does not survive a boot"


def seconds(unit: Counter[tuple[str, str]], key: str) -> float:
    (value,) = (value for name, value in unit if name == key)
    return units.parse_duration(value.replace("min", "m"))


def test_times_of_a_trial_go_together() -> None:
    updater, trial = settings("agentina-update@.service"), settings("agentina-trial@.service")
    (given,) = (value for key, value in updater if key == "Environment")
    times = dict(word.split("=") for word in given.split())
    soak, patience = units.parse_duration(times["SOAK"]), units.parse_duration(times["PATIENCE"])
    assert trials.Terms() == trials.Terms(soak=soak, patience=patience)
    assert seconds(trial, "WatchdogSec") < soak < patience, "a release that stops feeding the watchdog is seen"
    assert (
        seconds(trial, "TimeoutStartSec") + patience
        < seconds(trial, "RuntimeMaxSec")
        < seconds(updater, "TimeoutStartSec")
    )
    (command,) = (value for key, value in updater if key == "ExecStart")
    assert command.endswith("--soak ${SOAK} --patience ${PATIENCE}")

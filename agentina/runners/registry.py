"""The runners this version has, by name."""

from __future__ import annotations

from typing import Final

from agentina.runners import command, contract

RUNNERS: Final[dict[str, contract.Runner]] = {runner.name: runner for runner in (command.CommandRunner(),)}

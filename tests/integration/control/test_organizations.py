"""Organizations on the command line."""

from __future__ import annotations

import json
from typing import Any

from agentina import errors
from tests.integration.control.conftest import CommandLine


def test_one_is_made_changed_and_listed(control: Any, command: CommandLine) -> None:
    control.agent()
    code, out, said = command("organization", "set", "acme", "--max-agents", "3", "--channel", "beta")
    assert (code, said) == (0, "Organization acme is new.\n")
    assert "0 of 3" in out
    assert command("organization", "set", "acme", "--plan", "small")[2] == ""
    lines = command("organization", "list")[1].splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["acme", "small", "0/3"], ["default", "community", "1/100"]]
    listed = json.loads(command("organization", "list", "--json")[1])["organizations"]
    assert [one["name"] for one in listed] == ["acme", "default"]


def test_a_name_that_is_mistyped_is_told_where_to_look(control: Any, command: CommandLine) -> None:
    del control
    for words in (("organization", "show", "x"), ("anomaly", "list", "--organization", "x")):
        code, _, said = command(*words)
        assert code == errors.Exit.NOT_FOUND
        assert "organization list" in said

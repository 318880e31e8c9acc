from __future__ import annotations

import subprocess

import pytest

from agentina.protocol.jobs import Command
from agentina.runners import command


def test_argv_is_taken_as_it_is() -> None:
    assert command.command_line(Command(argv=["a", "$b"])) == ["a", "$b"]


@pytest.mark.parametrize("filling", ["", "#" * 250_000 + "\n", "# é" * 80_000 + "\n"])
def test_script_of_any_size_runs_the_same(filling: str) -> None:
    script = f"{filling}echo \"$# '$0'\"; printf '%s' \"${{x-unset}}\"; false; echo never"
    argv = command.command_line(Command(script=script))
    assert all(len(part.encode()) < 131_072 for part in argv)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "0 '/bin/sh'\nunset", done.stderr
    assert done.returncode == 1


def test_parts_are_joined_within_words() -> None:
    text = "".join(f"{number}," for number in range(20_000))
    done = subprocess.run(
        command.command_line(Command(script=f"cat <<'END'\n{text}\nEND\n")), capture_output=True, text=True, check=True
    )
    assert done.stdout == text + "\n"

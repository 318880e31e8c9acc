"""The completion scripts, sourced by the shells they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import deadlines

BASH = """
source "$SCRIPT"
complete -p agentina >&2
ask() {
    COMP_WORDS=(agentina "$@"); COMP_CWORD=$#; COMPREPLY=()
    _agentina_completion agentina
    printf '%s\\n' "${COMPREPLY[@]}"
}
ask st; ask job can
"""
# Builtins of completion work in zsh's line editor only: here _describe prints what it would offer.
ZSH = """
autoload -U compinit
compinit -u -D
source "$SCRIPT"
_describe() { local found=(${(P)3}); print -l ${found%%:*} }
ask() { words=(agentina $@); CURRENT=$#words; ${_comps[agentina]} }
ask st; ask job can
"""
FISH = """
source $SCRIPT
complete -C "agentina st"; complete -C "agentina job can"
"""
#: Each sources the script in $SCRIPT and prints what `agentina st` and `agentina job can` complete to, one a line.
ASK = {
    "bash": ["bash", "--norc", "--noprofile", "-c", BASH],
    "zsh": ["zsh", "-f", "-c", ZSH],
    "fish": ["fish", "--no-config", "-c", FISH],
}


@pytest.mark.parametrize("shell", ASK)
def test_shell_completes_commands(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    made = subprocess.run(["agentina", "completion", shell], env=environment, capture_output=True, check=True)
    script = tmp_path / f"agentina.{shell}"
    script.write_bytes(made.stdout)
    environment["SCRIPT"] = str(script)
    done = subprocess.run(
        ASK[shell], env=environment, capture_output=True, text=True, timeout=deadlines.HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["status", "cancel"], done

"""A program in the place of Claude Code that works until it is interrupted, and finishes when it is resumed."""

from __future__ import annotations

from pathlib import Path

from tests.fakes import agent_cli

SESSION = "473c6de2-ab57-4fa3-8627-cbc3b6176cad"
RECORDING = agent_cli.RECORDINGS / "claude_ok.jsonl"
_PROGRAM = f"""\
#!/bin/sh
transcript="$HOME/.claude/projects/$(pwd | tr -c 'A-Za-z0-9\\n' -)/{SESSION}.jsonl"
prompt=$(cat)
case " $* " in
*" --resume {SESSION} "*)
    grep -q '"first"' "$transcript" || {{ echo "No conversation found" >&2; exit 1; }}
    printf '%s\\n' "$prompt" > prompt.txt
    echo "$AGENTINA_RESUMED_FROM" > from.txt
    echo second >> notes.txt
    cat @RECORDING@ ;;
*)
    mkdir -p "${{transcript%/*}}"
    printf '{{"type":"user","text":"first"}}\\n{{"torn' > "$transcript"
    echo first >> notes.txt
    rm -f gone.txt
    head -n 1 @RECORDING@
    exec sleep 1000 ;;
esac
"""


def program(recording: str) -> str:
    """The program; ``recording`` is where its host has :data:`RECORDING`."""
    return _PROGRAM.replace("@RECORDING@", recording)


def install(root: Path) -> None:
    """Describe it to the hosts below ``root``."""
    path = root / "bin-claude-interrupted"
    path.write_text(program(str(RECORDING)))
    path.chmod(0o755)
    described = root / "etc/agentina/runners.d"
    described.mkdir(parents=True, exist_ok=True)
    (described / "claude-code.yaml").write_text(f"program: {path}\n")

"""A program in the place of an AI agent's command line: keeps how it was called, and replays a recorded stream."""

from __future__ import annotations

from pathlib import Path

RECORDINGS = Path(__file__).parents[1] / "data/cli-streams"


def install(directory: Path, runner: str, recording: str, *, then: str = "exit 0", before: str = "") -> Path:
    """Make the program, described to hosts below ``directory`` (their root); returns where it keeps its calls.

    Args:
        directory: Root of the host.
        runner: The runner whose program it is.
        recording: The stream it prints, a file of tests/data/cli-streams without its ending.
        then: Shell commands after that.
        before: Shell commands before it.

    """
    kept = directory / f"kept-{runner}"
    kept.mkdir(exist_ok=True)
    program = directory / f"bin-{runner}"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" > {kept}/argv; cat > {kept}/stdin; env > {kept}/environment; pwd > {kept}/directory\n'
        f'cp -r "$HOME" {kept}/home; tr "\\0" "\\n" < /proc/$$/cmdline > {kept}/cmdline\n'
        f"{before}\ncat {RECORDINGS}/{recording}.jsonl\n{then}\n"
    )
    program.chmod(0o755)
    described = directory / "etc/agentina/runners.d"
    described.mkdir(parents=True, exist_ok=True)
    (described / f"{runner}.yaml").write_text(f"program: {program}\n")
    return kept

"""``agentina completion``: tell a shell how to complete agentina's commands."""

from __future__ import annotations

import click

from agentina.cli import options, output


@click.command(
    epilog=options.examples(
        "agentina completion bash > /etc/bash_completion.d/agentina",
        "agentina completion fish > ~/.config/fish/completions/agentina.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell."""
    from click import shell_completion

    # The source is taken from the class's template: its source() would run bash only to learn that shell's version.
    kind = {
        "bash": shell_completion.BashComplete,
        "zsh": shell_completion.ZshComplete,
        "fish": shell_completion.FishComplete,
    }[shell]
    complete = kind(click.Group(), {}, "agentina", "_AGENTINA_COMPLETE")
    output.answer(complete.source_template % complete.source_vars())

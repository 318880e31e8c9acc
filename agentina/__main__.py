"""``agentina``, and ``python -m agentina``, begin here."""

from agentina.cli import interrupts


def main() -> None:
    """Load the command line and run it."""
    interrupts.end_at_once()
    from agentina.cli import main as command_line  # noqa: PLC0415 - an interrupt while it loads is provided for

    command_line.main()


if __name__ == "__main__":
    main()

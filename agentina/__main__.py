"""``python -m agentina`` is the same command as ``agentina``."""

from agentina.cli import main

if __name__ == "__main__":
    main.main()

"""``python -m agent`` is ``flyball``."""

from agent.cli import main

main()

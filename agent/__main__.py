"""`python -m agent` is tf-agent."""

from agent.cli import main

main()

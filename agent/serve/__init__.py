"""The agent's HTTP API, and who may use it."""

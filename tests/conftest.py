"""Settings of the agent's tests."""

from hypothesis import settings

# A machine that is busy with something else fails no property.
settings.register_profile("agent", deadline=None)
settings.load_profile("agent")

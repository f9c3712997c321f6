"""Settings of all tests."""

from hypothesis import settings

# A machine that is busy with something else fails no property.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

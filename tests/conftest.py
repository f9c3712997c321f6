"""Settings of all tests."""

import os

import structlog
from hypothesis import settings

# A machine that is busy with something else fails no property, and what failed fails again: a run is as good as another.
# HYPOTHESIS_PROFILE=explore looks where nobody has looked before.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "patient"))


def pytest_runtest_setup() -> None:
    """Begin with logs as they are by default: a command that was tried before may have silenced them."""
    structlog.reset_defaults()

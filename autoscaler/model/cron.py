"""Five-field cron expressions and IANA time zones, checked when they are read rather than when they should fire."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

CRON_ALLOWED: Final = (
    "a cron expression of five fields (minute hour day month weekday) that comes to pass, such as 0 8 * * 1-5"
)
ZONE_ALLOWED: Final = "an IANA time zone such as Asia/Shanghai or UTC"

_MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# Any start will do: whether an expression ever fires within the 50 years that are searched does not depend on it.
_SEARCH_FROM: Final = datetime(2024, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=1024)
def parse_cron(text: str) -> str:
    """Return the five fields with macros and `?` spelled out; ValueError if malformed or if it never fires."""
    fields = _MACROS.get(text.strip().lower(), text).replace("?", "*").split()
    if len(fields) != 5:
        raise ValueError(CRON_ALLOWED)
    expression = " ".join(fields)
    try:
        fires = next(CronSim(expression, _SEARCH_FROM), None)
    except CronSimError as error:
        raise ValueError(f"{CRON_ALLOWED} ({error})") from None
    if fires is None:
        raise ValueError(CRON_ALLOWED)
    return expression


def parse_zone(name: str) -> str:
    """Return the name of a known time zone; ValueError otherwise."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(ZONE_ALLOWED) from None
    return name

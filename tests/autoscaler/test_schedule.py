"""When rules by the clock are in force: worked examples around every oddity of clocks, and brute force over days."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.model.config import CronRule
from autoscaler.model.schedule import active_rule, next_transition, phase_of, to_turns, turn_of
from tests.autoscaler.stage import with_config

BERLIN, NEW_YORK, KOLKATA, KATHMANDU = "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"


def rule(start: str, end: str, zone: str = BERLIN, **fields: object) -> CronRule:
    made = CronRule("r", start, end, time_zone=zone, replicas=4)
    return replace(made, **fields)  # type: ignore[arg-type]


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


OFFICE = ("0 8 * * 1-5", "0 20 * * 1-5")
NIGHT = ("30 2 * * *", "0 8 * * *")
CASES = [
    # rule, moment, in force?, next transition
    (OFFICE, BERLIN, ("2026-11-23T07:59:59", 0), False, ("2026-11-23T08:00", 0)),
    (OFFICE, BERLIN, ("2026-11-23T08:00", 0), True, ("2026-11-23T20:00", 0)),
    (OFFICE, BERLIN, ("2026-11-23T20:00", 0), False, ("2026-11-24T08:00", 0)),
    (OFFICE, BERLIN, ("2026-11-28T12:00", 0), False, ("2026-11-30T08:00", 0)),  # Saturday
    (("0 20 * * 5", "0 6 * * 1"), BERLIN, ("2026-11-29T12:00", 0), True, ("2026-11-30T06:00", 0)),  # over a week-end
    # spring: 02:00 to 03:00 is skipped, 02:30 comes when the skip is over
    (NIGHT, BERLIN, ("2026-03-29T01:59:59", 0), False, ("2026-03-29T03:00", 0)),
    (NIGHT, BERLIN, ("2026-03-29T03:00", 0), True, ("2026-03-29T08:00", 0)),
    (NIGHT, NEW_YORK, ("2026-03-08T01:59", 0), False, ("2026-03-08T03:00", 0)),
    (NIGHT, NEW_YORK, ("2026-03-08T03:10", 0), True, ("2026-03-08T08:00", 0)),
    (("0 1 * * *", "30 2 * * *"), NEW_YORK, ("2026-03-08T01:30", 0), True, ("2026-03-08T03:00", 0)),
    # autumn: the hour from 02:00 (New York: 01:00) is shown twice, a fixed time counts the first time
    (NIGHT, BERLIN, ("2026-10-25T02:29", 0), False, ("2026-10-25T02:30", 0)),
    (NIGHT, BERLIN, ("2026-10-25T02:45", 0), True, ("2026-10-25T08:00", 0)),
    (NIGHT, BERLIN, ("2026-10-25T02:10", 1), True, ("2026-10-25T08:00", 0)),
    (("0 20 * * *", "30 1 * * *"), NEW_YORK, ("2026-11-01T01:29", 0), True, ("2026-11-01T01:30", 0)),
    (("0 20 * * *", "30 1 * * *"), NEW_YORK, ("2026-11-01T01:10", 1), False, ("2026-11-01T20:00", 0)),
    # half and quarter hours of offset
    (OFFICE, KOLKATA, ("2026-11-23T08:00", 0), True, ("2026-11-23T20:00", 0)),
    (OFFICE, KATHMANDU, ("2026-11-23T20:00", 0), False, ("2026-11-24T08:00", 0)),
    # the 29th of February
    (("0 0 29 2 *", "0 0 1 3 *"), BERLIN, ("2026-06-01T00:00", 0), False, ("2028-02-29T00:00", 0)),
    (("0 0 29 2 *", "0 0 1 3 *"), BERLIN, ("2028-02-29T12:00", 0), True, ("2028-03-01T00:00", 0)),
    # where start and end fall on one moment, start wins
    (("0 8 * * *", "0 */4 * * *"), BERLIN, ("2026-11-23T08:00", 0), True, ("2026-11-23T12:00", 0)),
    (("0 8,12 * * *", "0 12,16 * * *"), BERLIN, ("2026-11-23T11:00", 0), True, ("2026-11-23T16:00", 0)),
]


@pytest.mark.parametrize(("times", "zone", "moment", "active", "following"), CASES)
def test_a_rule_holds_from_its_start_to_its_next_end(times, zone, moment, active, following):
    now, made = at(moment[0], zone, moment[1]), rule(times[0], times[1], zone)
    assert active_rule([made], now) == (made if active else None)
    assert next_transition([made], now) == at(following[0], zone, following[1])


def test_a_wildcard_hour_counts_every_hour_that_the_clock_shows():
    every = rule("0 * * * *", "30 * * * *")
    first, again = at("2026-10-25T02:10"), at("2026-10-25T02:10", fold=1)
    assert again - first == 3600
    assert active_rule([every], first) == active_rule([every], again) == every
    assert active_rule([every], first + 1800) is None
    assert next_transition([every], first) == first + 1200


def test_an_end_that_never_comes_alone_leaves_the_rule_in_force():
    always = rule("* * * * *", "*/5 * * * *")
    assert active_rule([always], at("2026-11-23T08:02")) == always


def test_a_start_every_minute_with_an_end_years_away_is_found_at_once():
    long = rule("*/2 * * * *", "1 0 29 2 *")
    began = time.process_time()
    assert next_transition([long], at("2026-11-23T08:02")) == at("2028-02-29T00:01")
    assert time.process_time() - began < 1.0


def test_the_highest_priority_wins_then_the_first_in_the_list():
    day, noon = rule(*OFFICE, name="day"), rule("0 12 * * *", "0 13 * * *", name="noon", priority=5)
    twin = replace(day, name="twin", replicas=9)
    assert active_rule([day, twin, noon], at("2026-11-23T12:30")) == noon
    assert active_rule([day, twin, noon], at("2026-11-23T13:00")) == day
    assert active_rule([twin, day, noon], at("2026-11-23T13:00")) == twin
    assert next_transition([day, noon], at("2026-11-23T09:00")) == at("2026-11-23T12:00")


def test_rules_that_are_off_or_name_no_figure_do_nothing():
    idle = [rule(*OFFICE, enable=False), rule(*OFFICE, replicas=None)]
    assert turn_of(idle, at("2026-11-23T12:00")) is None
    assert next_transition(idle, at("2026-11-23T12:00")) is None
    other = rule("0 6 * * *", "0 7 * * *")
    assert active_rule([*idle, other], at("2026-11-23T12:00")) is None


def test_a_turn_is_kept_until_a_moment_that_can_change_it_and_searched_again_when_the_clock_was_set_back():
    config = with_config(cron_rules=(rule(*OFFICE),))
    first = to_turns([config], at("2026-11-23T09:00"))
    later = to_turns([config], at("2026-11-23T19:59"), first)
    assert later.turns[0] is first.turns[0]
    over = to_turns([config], at("2026-11-23T20:00"), later)
    assert over.turns[0] is not None
    assert over.turns[0].rule is None
    back = to_turns([config], at("2026-11-23T10:00"), over)
    assert back.turns[0] == first.turns[0]
    other = with_config(cron_rules=(rule(*OFFICE, name="new"),))
    assert to_turns([other], at("2026-11-23T19:59"), first).turns[0].rule == other.cron_rules[0]  # type: ignore[union-attr]


def test_turns_that_are_known_are_not_worked_out_again():
    configs = [with_config(cron_rules=(rule(*OFFICE), rule(NIGHT[0], NIGHT[1], NEW_YORK))) for _ in range(100)]
    known = to_turns(configs, at("2026-11-23T09:00"))
    again = to_turns(configs, at("2026-11-23T09:01"), known)
    assert all(one is other for one, other in zip(known.turns, again.turns, strict=True))


FIELDS = st.one_of(st.just(None), st.sets(st.integers(0, 59), min_size=1, max_size=4))  # None: `*`, every minute
HOURS = st.one_of(st.just(None), st.sets(st.integers(0, 23), min_size=1, max_size=4))
WEEKDAYS = st.one_of(st.just(None), st.sets(st.integers(0, 6), min_size=1, max_size=5))
Spec = tuple[set[int] | None, set[int] | None, set[int] | None]
SPECS = st.tuples(FIELDS, HOURS, WEEKDAYS)
ZONES = st.sampled_from([BERLIN, NEW_YORK, KOLKATA, KATHMANDU, "UTC", "Australia/Adelaide", "America/St_Johns"])
DAYS = st.sampled_from([
    "2026-03-07", "2026-03-28", "2026-04-04", "2026-10-03", "2026-10-24", "2026-10-31", "2026-06-10", "2027-12-30",
])  # fmt: skip


def expression(spec: Spec) -> str:
    minute, hour, weekday = ("*" if part is None else ",".join(map(str, sorted(part))) for part in spec)
    return f"{minute} {hour} * * {weekday}"


def fires(spec: Spec, wall: datetime) -> bool:
    parts = (wall.minute, wall.hour, wall.isoweekday() % 7)
    return all(allowed is None or value in allowed for allowed, value in zip(spec, parts, strict=True))


def fires_at(spec: Spec, moment: datetime, zone: ZoneInfo) -> bool:
    """As Debian's cron: at fixed times once, those that the clock skips when the skip is over; `*` as the clock shows."""
    wall = moment.astimezone(zone)
    if spec[0] is None or spec[1] is None:
        return fires(spec, wall)
    skipped = wall.utcoffset() - (moment - timedelta(minutes=1)).astimezone(zone).utcoffset()  # type: ignore[operator]
    late = range(1, int(skipped.total_seconds() // 60) + 1)
    return (wall.fold == 0 and fires(spec, wall)) or any(
        fires(spec, wall.replace(tzinfo=None) - timedelta(minutes=back)) for back in late
    )


@settings(max_examples=12, deadline=None)
@given(start=SPECS, end=SPECS, zone=ZONES, day=DAYS, offset=st.integers(0, 59))
def test_what_is_in_force_agrees_with_looking_at_every_minute(start: Spec, end: Spec, zone: str, day: str, offset: int):
    info = ZoneInfo(zone)
    minute = datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(days=1)
    until = minute + timedelta(days=3)
    times = expression(start), expression(end), zone
    active: bool | None = None
    switched: list[tuple[datetime, bool]] = []
    while minute < until:
        if fires_at(end, minute, info):
            active = False
        if fires_at(start, minute, info):
            active = True
        if active is not None:
            switched.append((minute, active))
        minute += timedelta(minutes=1)
    for moment, expected in switched[offset::397]:
        phase = phase_of(times, moment.timestamp())
        assert phase.active == expected, (times, moment)
        change = next((later for later, state in switched if later > moment and state != expected), None)
        if change is not None:
            # A rule that starts every minute is looked at again before: never later than it changes.
            again = start[0] is None and phase.until < change.timestamp()
            assert again or phase.until == change.timestamp(), (times, moment)
        else:
            assert phase.until > switched[-1][0].timestamp() or start[0] is None, (times, moment)

"""A story's decisions as compact text, one line per figure that moved or began to be held for a reason worth knowing.

Hesitation is left out (stabilization, cool-down, tolerance, and too little evidence to shrink): it ends in a change or
in nothing. Every line of a change was worked out again from its record, by `report.recompute`, before it was written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from autoscaler.guard.trace import record_of
from autoscaler.model.config import Mode
from autoscaler.model.decision import Field, FieldDecision
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.report.message import amount_text
from autoscaler.report.recompute import recompute
from autoscaler.report.wording import name_of
from tests.scenarios.demand import MINUTE
from tests.scenarios.scene import Pass, Scene
from tests.scenarios.story import Story

QUIET = {Verdict.PASSED, Verdict.STABILIZING, Verdict.COOLING_DOWN, Verdict.WITHIN_TOLERANCE, Verdict.RECOMMEND_ONLY}
QUIET_DOWN = {Verdict.LOW_CONFIDENCE, Verdict.INITIAL_DELAY}
FIELDS = {one.name.lower(): one for one in Field}


@dataclass(frozen=True)
class Line:
    """One decision worth telling; where nothing moved `after` is what was asked for."""

    minute: int
    workload: str
    field: Field
    before: float
    after: float
    moved: bool
    cause: Cause
    verdict: Verdict


@dataclass
class Told:
    """A story that was played: its scene with every pass, and the lines."""

    story: Story
    scene: Scene = field(init=False)
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._holding: dict[tuple[int, Field], Verdict] = {}
        self.scene = Scene(self.story)
        self.scene.play(self._take)

    @property
    def passes(self) -> list[Pass]:
        return self.scene.passes

    def text(self) -> str:
        """Return the timeline, as kept beside the story."""
        return "\n".join([self.story.title, "", *self._table(), "", *self._sums()]) + "\n"

    def changes(self, workload: str, figure: Field, first: int = 0, last: int | None = None) -> list[Line]:
        """Return the moves of a figure from one minute to another, both included."""
        end = self.story.minutes if last is None else last
        return [
            line
            for line in self.lines
            if line.moved and line.workload == workload and line.field is figure and first <= line.minute <= end
        ]

    def _take(self, made: Pass) -> None:
        for row, (role, decision) in enumerate(zip(self.story.roles, made.decisions, strict=True)):
            for one in decision.fields:
                held = _is_held(one)
                news = held and self._holding.get((row, one.field)) is not one.verdict
                if one.changed or news:
                    after = one.allowed if one.changed else one.uncapped
                    told = one.field, one.current, after, one.changed, one.cause, one.verdict
                    self.lines.append(Line(made.minute, role.name, *told))
                if held:
                    self._holding[row, one.field] = one.verdict
                elif one.changed or one.verdict is Verdict.PASSED:
                    self._holding.pop((row, one.field), None)
            if decision.changed:
                self._explain(made, row)

    @staticmethod
    def _explain(made: Pass, row: int) -> None:
        """Work every figure out again from its record alone."""
        for figure, again in recompute(record_of(made.allowed, row)).items():
            assert again.allowed == made.decisions[row][figure].allowed, (made.minute, figure.name)

    def _table(self) -> Iterator[str]:
        several = len(self.story.roles) > 1
        for line in self.lines:
            moment = datetime.fromtimestamp(self.story.start + MINUTE * line.minute, self.story.zone)
            before, after = (amount_text(line.field.resource, value) for value in (line.before, line.after))
            way = f"{before} → {after}" if line.moved else f"{before} held, wanted {after}"
            who = f"{line.workload:<10} " if several else ""
            named = f"{name_of(line.field):<15}  {way:<26}  {line.cause:<14}  {line.verdict}"
            yield f"{clock(line.minute):>6}  {moment:%a %H:%M} {moment.tzname():<4}  {who}{named}"

    def _sums(self) -> Iterator[str]:
        for actor in self.scene.actors:
            name = actor.role.name
            moves = ", ".join(f"{name_of(one)} {len(self.changes(name, one))}" for one in Field)
            troubles = f"out of memory {actor.ooms} times, short of compute {actor.clipped_minutes}m"
            yield f"{name}: changes of {moves}; {troubles}"


def clock(minute: int) -> str:
    """Return hours and minutes since the story began."""
    return f"{minute // 60}:{minute % 60:02}"


def _is_held(one: FieldDecision) -> bool:
    """Tell whether a guard keeps a figure from where it should go, for a reason that lasts."""
    wished = one.uncapped != one.current and not math.isnan(one.uncapped)
    quiet = QUIET if one.uncapped > one.current else QUIET | QUIET_DOWN
    return one.mode is Mode.ON and not one.changed and wished and one.verdict not in quiet

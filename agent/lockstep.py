"""Simulated time that moves only when it is told to: the agent ticks from where it stands to where it is asked."""

from __future__ import annotations

import threading

import msgspec

from agent.loop import Agent
from agent.simulate.node import Simulation, Truth


class Advanced(msgspec.Struct, frozen=True):
    """Where the clock stands now (seconds since the epoch), the ticks it took, and the truth so far."""

    at: float
    ticks: int
    workers: tuple[Truth, ...]


class RenderClock:
    """A clock for the exporter that stands still during an advance, so that only its last tick is rendered."""

    def __init__(self) -> None:
        self.advances = 0.0

    def __call__(self) -> float:
        """Return the number of advances."""
        return self.advances


class Lockstep:
    """Drives one agent over one simulation; also the clock of both."""

    def __init__(self, agent: Agent, simulation: Simulation, tick_seconds: float, render: RenderClock) -> None:
        """Tick once, at the scenario's start (0 where it names none)."""
        self._agent = agent
        self._simulation = simulation
        self._tick_seconds = tick_seconds
        self._render = render
        self._lock = threading.Lock()
        self.now = simulation.scenario.start_seconds or 0.0
        agent.tick(self.now)

    def advance(self, to: float) -> Advanced:
        """Tick on to the last whole tick at or before `to`; the past is left alone."""
        with self._lock:
            start = self.now
            ticks = max(0, int((to - start) / self._tick_seconds + 1e-9))
            for number in range(1, ticks + 1):
                self._render.advances += number == ticks
                self.now = start + number * self._tick_seconds
                self._agent.tick(self.now)
            return Advanced(self.now, ticks, self._simulation.truth())

"""What simulated workers would use if nothing held them back: demand as a function of time, by character; pure.

A demand depends on the seed and the time alone, so that a run can be repeated and a moment be asked for out of order.
Time is in seconds since midnight of the scenario's first day. Neighbours: `scenario` names a character and its
parameters, `simulate` lets the demand meet the limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

DAY_SECONDS: Final = 86400.0
GIB: Final = float(1 << 30)
_MASK: Final = (1 << 64) - 1
_NOISE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Demand:
    """FP16 TFLOPs and bytes of device memory that a worker would use now."""

    tflops: float
    vram_bytes: int


Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Character:
    """A demand function of (time in seconds, parameters, seed), and all its parameters with their defaults."""

    demand: Callable[[float, Parameters, int], Demand]
    defaults: Parameters


def chance(seed: int, place: int) -> float:
    """Return a number in 0..1 that depends on both arguments only (the SplitMix64 finaliser of Steele et al., 2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) / (_MASK + 1)


def _wobble(t: float, noise_ratio: float, seed: int) -> float:
    """Return a factor around 1 that moves between a new random point each minute."""
    if noise_ratio == 0:
        return 1.0
    slot, part = divmod(t, _NOISE_SECONDS)
    before, after = chance(seed, int(slot)), chance(seed, int(slot) + 1)
    share = part / _NOISE_SECONDS
    return 1.0 + noise_ratio * (2 * (before + (after - before) * share) - 1)


def _steady(t: float, p: Parameters, seed: int) -> Demand:
    return Demand(p["tflops"] * _wobble(t, p["noise_ratio"], seed), int(p["vram_bytes"]))


def _diurnal(t: float, p: Parameters, seed: int) -> Demand:
    level = 0.5 + 0.5 * math.cos(2 * math.pi * (t / DAY_SECONDS - p["peak_hour"] / 24))
    tflops = (p["tflops"] + (p["peak_tflops"] - p["tflops"]) * level) * _wobble(t, p["noise_ratio"], seed)
    return Demand(tflops, int(p["vram_bytes"] + (p["peak_vram_bytes"] - p["vram_bytes"]) * level))


def _bursty(t: float, p: Parameters, seed: int) -> Demand:
    bursting = chance(seed, int(t // p["slot_seconds"])) < p["burst_chance_ratio"]
    tflops = p["burst_tflops"] if bursting else p["tflops"]
    return Demand(tflops * _wobble(t, p["noise_ratio"], seed), int(p["burst_vram_bytes" if bursting else "vram_bytes"]))


def _nightly(t: float, p: Parameters, seed: int) -> Demand:
    working = (t / 3600 - p["start_hour"]) % 24 < p["hours"]
    tflops = p["tflops"] * _wobble(t, p["noise_ratio"], seed) if working else 0.0
    return Demand(tflops, int(p["vram_bytes" if working else "idle_vram_bytes"]))


def _outgrower(t: float, p: Parameters, seed: int) -> Demand:
    grown = p["vram_bytes"] + p["growth_bytes_per_hour"] * t / 3600
    return Demand(p["tflops"] * _wobble(t, p["noise_ratio"], seed), int(min(grown, p["peak_vram_bytes"])))


def _step(t: float, p: Parameters, seed: int) -> Demand:
    factor = p["factor_ratio"] if t >= p["at_seconds"] else 1.0
    return Demand(p["tflops"] * factor * _wobble(t, p["noise_ratio"], seed), int(p["vram_bytes"]))


def _ramp(t: float, p: Parameters, seed: int) -> Demand:
    share = min(1.0, max(0.0, (t - p["at_seconds"]) / p["ramp_seconds"]))
    tflops = p["tflops"] + (p["peak_tflops"] - p["tflops"]) * share
    return Demand(tflops * _wobble(t, p["noise_ratio"], seed), int(p["vram_bytes"]))


DIVISORS: Final = frozenset({"slot_seconds", "ramp_seconds"})
"""Parameters that must not be zero."""

_BASE: Final = {"tflops": 20.0, "vram_bytes": 8 * GIB, "noise_ratio": 0.05}
_BURSTS: Final = {"slot_seconds": 120.0, "burst_chance_ratio": 0.25, "burst_tflops": 60.0, "burst_vram_bytes": 12 * GIB}
_SESSIONS: Final = {"slot_seconds": 1800.0, "burst_chance_ratio": 0.03, "burst_tflops": 15.0}

CHARACTERS: Final[Mapping[str, Character]] = {
    "steady": Character(_steady, _BASE),
    "diurnal": Character(
        _diurnal, _BASE | {"tflops": 5.0, "peak_tflops": 40.0, "peak_hour": 15.0, "peak_vram_bytes": 14 * GIB}
    ),
    "bursty": Character(_bursty, _BASE | {"tflops": 2.0} | _BURSTS),
    "nightly": Character(_nightly, _BASE | {"start_hour": 1.0, "hours": 4.0, "idle_vram_bytes": GIB}),
    "idle": Character(
        _bursty, _BASE | {"tflops": 0.0, "vram_bytes": 0.5 * GIB} | _SESSIONS | {"burst_vram_bytes": 4 * GIB}
    ),
    "outgrower": Character(_outgrower, _BASE | {"growth_bytes_per_hour": GIB, "peak_vram_bytes": 20 * GIB}),
    "step": Character(_step, _BASE | {"factor_ratio": 3.0, "at_seconds": 3600.0}),
    "ramp": Character(_ramp, _BASE | {"peak_tflops": 60.0, "at_seconds": 0.0, "ramp_seconds": 7200.0}),
}
"""LLM service by day, diffusion in bursts, embedding by night, a lab that mostly idles, one that outgrows its VRAM."""

"""What the demo runs: its GPUs and a dozen services of different character, sized as their owners guessed; pure.

A service's demand is played by the node agent's simulation: `character` and `parameters` are the names that its
scenario files know. A seed moves peaks and amplitudes a little, and is the seed of every worker's noise.
"""

from __future__ import annotations

import random  # noqa: TID251  the demo's seeded generator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from autoscaler.contract.keys import QoS
from autoscaler.model.resources import GIB, Amount, Amounts

HOUR: Final = 3600.0
MINUTE: Final = 60.0
SURGE_FACTOR: Final = 3.0
"""What the surging service asks for, in multiples of the limit that its owner set."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of a node, by its NVML model name."""

    uuid: str
    node: str
    model: str
    vram_bytes: int


@dataclass(frozen=True, slots=True)
class Service:
    """One Deployment: what its owner reserved per worker, and what its users really do.

    `workers` are device UUIDs, one per worker. `profile` names a WorkloadProfile; `sized_by_profile` leaves amounts,
    QoS and the choice of layers to it, otherwise annotations turn requests and limits on.
    """

    name: str
    qos: QoS
    amounts: Amounts
    workers: tuple[str, ...]
    character: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    profile: str = ""
    sized_by_profile: bool = False


@dataclass(frozen=True, slots=True)
class Town:
    """Everything there is; the demand of `surging` steps over its limit `surge_at` seconds after the start."""

    seed: int
    devices: tuple[Device, ...]
    services: tuple[Service, ...]
    surging: str
    surge_at: float

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes."""
        return tuple(dict.fromkeys(device.node for device in self.devices))

    def device(self, uuid: str) -> Device:
        """Return a device by its UUID."""
        return next(device for device in self.devices if device.uuid == uuid)


def town(seed: int, duration_seconds: float) -> Town:
    """Return the demo's town; what happens once (surge, ramp, growth) happens inside the duration."""
    surge_at = duration_seconds * 5 / 12 // MINUTE * MINUTE
    chance = random.Random(seed)  # noqa: S311  repeatable, not secret
    services = (*_by_day(), *_by_events(duration_seconds, surge_at), *_overlooked(), *_profiled())
    return Town(seed, DEVICES, tuple(_varied(service, chance) for service in services), "flash-sale", surge_at)


DEVICES: Final = (
    Device("GPU-a100-0", "gpu-node-a", "NVIDIA A100-SXM4-80GB", 80 * GIB),
    Device("GPU-a100-1", "gpu-node-a", "NVIDIA A100-SXM4-80GB", 80 * GIB),
    Device("GPU-l40s-0", "gpu-node-b", "NVIDIA L40S", 48 * GIB),
    Device("GPU-l40s-1", "gpu-node-b", "NVIDIA L40S", 48 * GIB),
    Device("GPU-l40-0", "gpu-node-b", "NVIDIA L40", 48 * GIB),
)
_A100_0, _A100_1, _L40S_0, _L40S_1, _L40_0 = (device.uuid for device in DEVICES)


def _amounts(tflops: tuple[float, float], vram_gib: tuple[float, float]) -> Amounts:
    return Amounts(Amount(*tflops), Amount(vram_gib[0] * GIB, vram_gib[1] * GIB))


def _by_day() -> tuple[Service, ...]:
    """Return the services that follow people's days."""
    chat = _diurnal((15, 140), (20, 34), peak_hour=15)
    code = _diurnal((8, 70), (12, 20), peak_hour=11)
    search = _diurnal((5, 40), (6, 8), peak_hour=19)
    translation = _diurnal((6, 35), (8, 11), peak_hour=13)
    return (
        Service("chat-llm", QoS.CRITICAL, _amounts((150, 200), (40, 44)), (_A100_0,), "diurnal", chat),
        Service("code-assist", QoS.HIGH, _amounts((90, 120), (24, 28)), (_A100_1,), "diurnal", code),
        Service(
            "search-rerank", QoS.MEDIUM, _amounts((60, 80), (10, 12)), (_A100_1, _L40S_0), "diurnal", search, "replicas"
        ),
        Service(
            "translation", QoS.HIGH, _amounts((50, 60), (14, 16)), (_A100_0,), "diurnal", translation, "look-only", True
        ),
    )


def _by_events(duration_seconds: float, surge_at: float) -> tuple[Service, ...]:
    """Return the services to which something happens once."""
    hours = duration_seconds / HOUR
    growth = {
        "tflops": 12.0,
        "vram_bytes": 8.0 * GIB,
        "growth_bytes_per_hour": 14 * GIB / (0.7 * hours),
        "peak_vram_bytes": 22.0 * GIB,
    }
    ramp = {
        "tflops": 10.0,
        "peak_tflops": 50.0,
        "vram_bytes": 7.0 * GIB,
        "at_seconds": 0.2 * duration_seconds,
        "ramp_seconds": 0.4 * duration_seconds,
    }
    sale = _amounts((30, 40), (12, 12))
    before = 20.0
    surge = {
        "tflops": before,
        "factor_ratio": SURGE_FACTOR * sale.compute.limit / before,
        "noise_ratio": 0.0,
        "at_seconds": surge_at + 1,  # a sample at the very moment would count for the time before it
        "vram_bytes": 10.0 * GIB,
    }
    return (
        Service("flash-sale", QoS.HIGH, sale, (_L40S_0,), "step", surge),
        Service("rag-cache", QoS.MEDIUM, _amounts((25, 30), (12, 12)), (_L40_0,), "outgrower", growth),
        Service("voice-beta", QoS.MEDIUM, _amounts((25, 30), (8, 10)), (_L40_0,), "ramp", ramp),
    )


def _overlooked() -> tuple[Service, ...]:
    """Return the services that hold far more than they use most of the time."""
    bursts = {"burst_tflops": 65.0, "vram_bytes": 8.0 * GIB, "burst_vram_bytes": 12.0 * GIB}
    night = {"tflops": 80.0, "vram_bytes": 16.0 * GIB, "idle_vram_bytes": 1.0 * GIB, "start_hour": 22.0, "hours": 6.0}
    return (
        Service("image-diffusion", QoS.MEDIUM, _amounts((80, 100), (16, 18)), (_L40S_0,), "bursty", bursts),
        Service("nightly-embedding", QoS.LOW, _amounts((90, 110), (18, 20)), (_L40S_1,), "nightly", night),
        Service("lab-notebook", QoS.LOW, _amounts((20, 40), (8, 8)), (_L40S_1,), "idle"),
        Service(
            "speech-to-text",
            QoS.MEDIUM,
            _amounts((70, 80), (12, 14)),
            (_L40S_1,),
            "steady",
            {"tflops": 30.0, "vram_bytes": 5.0 * GIB},
        ),
    )


def _profiled() -> tuple[Service, ...]:
    """Return two services that share one profile."""
    amounts = _amounts((30, 45), (8, 10))
    steady = {"tflops": 9.0, "vram_bytes": 3.0 * GIB}
    bursts = {"tflops": 1.0, "burst_tflops": 28.0, "vram_bytes": 2.5 * GIB, "burst_vram_bytes": 3.5 * GIB}
    return (
        Service("document-ocr", QoS.MEDIUM, amounts, (_A100_1,), "steady", steady, "small-model", True),
        Service("thumbnails", QoS.MEDIUM, amounts, (_A100_1,), "bursty", bursts, "small-model", True),
    )


def _diurnal(tflops: tuple[float, float], vram_gib: tuple[float, float], peak_hour: float) -> dict[str, float]:
    low, high = vram_gib
    return {
        "tflops": tflops[0],
        "peak_tflops": tflops[1],
        "vram_bytes": low * GIB,
        "peak_vram_bytes": high * GIB,
        "peak_hour": peak_hour,
    }


def _varied(service: Service, chance: random.Random) -> Service:
    """Return the service with this seed's peaks and amplitudes; the surge stays the multiple that it is."""
    moved = dict(service.parameters)
    size, hour = chance.uniform(0.9, 1.05), chance.uniform(-1.0, 1.0)
    if service.character != "step":
        moved |= {key: value * size for key, value in moved.items() if key.endswith("tflops")}
    if "peak_hour" in moved:
        moved["peak_hour"] = (moved["peak_hour"] + hour) % 24
    return replace(service, parameters=moved)

"""Who is compared on what: for each demand the figures that are set, and every profile that is tried; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from autoscaler.contract.gpus import GpuTable, built_in_rows
from autoscaler.contract.keys import QoS
from autoscaler.errors import ConfigError, Problem
from autoscaler.model.config import Configuration, Mode
from autoscaler.model.profile import WorkloadProfileSpec
from autoscaler.model.resolve import Defaults, Owner, resolve
from autoscaler.model.resources import Amount, Amounts, Resource
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Workload
from autoscaler.read.inventory import UNSET
from autoscaler.replay.demand import Demand
from autoscaler.replay.loop import Figures

STATIC, TODAY, CURRENT, DEFAULTS = "static", "today", "current", "defaults"
DEFAULT_MODEL: Final = "H100"
BYTES_PER_GB: Final = 2.0**30
"""Vendors say GB and mean GiB of memory."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU model: what one has, and whether anybody said that it is this one."""

    model: str
    tflops: float
    vram_bytes: float
    is_named: bool


@dataclass(frozen=True, slots=True)
class Tried:
    """A profile that is tried on every workload."""

    name: str
    spec: WorkloadProfileSpec


@dataclass(frozen=True, slots=True)
class Contender:
    """Figures that are held for good (`config` None), or the product with a configuration, beginning with them."""

    name: str
    figures: Figures
    config: Configuration | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One demand, and all who contend on it; the first is `static`."""

    demand: Demand
    contenders: tuple[Contender, ...]
    card: Card


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known beside the demands.

    `workloads`: of the cluster, by key; None where no cluster was given. `running`: as their own series tell, by key.
    `start_factor`: what is assumed to be set where nothing is, in multiples of the largest demand.
    """

    tried: tuple[Tried, ...]
    workloads: Mapping[WorkloadKey, Workload] | None
    running: Mapping[WorkloadKey, Workload]
    start_factor: float
    gpu_model: str


def cases(demands: Sequence[Demand], setting: Setting) -> tuple[Case, ...]:
    """Return every demand with its contenders; demands of no known workload are left out.

    Raises:
        ConfigError: a profile can't be used.

    """
    table = GpuTable(built_in_rows())
    return tuple(
        _case(demand, setting, table)
        for demand in demands
        if setting.workloads is None or demand.key in setting.workloads
    )


def card_of(model: str, table: GpuTable) -> Card:
    """Return the named model, the largest of its sizes; without a name the default one.

    Raises:
        ConfigError: nobody knows it.

    """
    row = table.lookup(model or DEFAULT_MODEL)
    if row is None:
        allowed = f"a model of the GPU table, such as {', '.join(table.aliases[:6])}, ..."
        raise ConfigError([Problem("--gpu-model", model, allowed)])
    return Card(model or DEFAULT_MODEL, row.tflops, max(row.vram_gb) * BYTES_PER_GB, bool(model))


def as_if_on(config: Configuration) -> Configuration:
    """Return a configuration switched on: layers that only recommend act, and where no layer is set, both do."""
    modes = config.requests.mode, config.limits.mode
    none = all(mode is Mode.OFF for mode in modes)
    requests, limits = (Mode.ON if none or mode is not Mode.OFF else Mode.OFF for mode in modes)
    return replace(config, requests=replace(config.requests, mode=requests), limits=replace(config.limits, mode=limits))


def _case(demand: Demand, setting: Setting, table: GpuTable) -> Case:
    workload = (setting.workloads or {}).get(demand.key)
    asked = workload.original if workload is not None else _set_without_cluster(demand, setting)
    contenders = [Contender(STATIC, _figures(asked))]
    model = setting.gpu_model
    described = workload or setting.running.get(demand.key)
    if described is not None:
        model = model or _known_model(described.config.gpu_model, table)
        demand = replace(demand, workers=demand.workers * described.config.gpu_count)
    if workload is not None:
        if workload.workers and workload.current != asked:
            contenders.append(Contender(TODAY, _figures(workload.current)))
        contenders.append(Contender(CURRENT, _figures(asked), as_if_on(workload.config)))
    for tried in setting.tried or _by_default(setting, described):
        config = configured(tried.spec, asked)
        contenders.append(Contender(tried.name, _figures(config.amounts), config))
    return Case(demand, tuple(contenders), card_of(model, table))


def _by_default(setting: Setting, described: Workload | None) -> tuple[Tried, ...]:
    """Return what is tried where nothing is asked for: with a cluster the current profile is enough, else a level."""
    if setting.workloads is not None:
        return ()
    return by_qos((described.config.qos if described is not None else QoS.MEDIUM,), name=DEFAULTS)


def configured(spec: WorkloadProfileSpec, asked: Amounts) -> Configuration:
    """Return a profile as a configuration, with the amounts `asked` where it sets none.

    Raises:
        ConfigError: with everything that is wrong.

    """
    sides = (asked.compute, asked.vram)
    defaults = Defaults(
        requests=(sides[0].request, sides[1].request),
        limits=(sides[0].limit, sides[1].limit),
    )
    return as_if_on(resolve({}, {}, spec, defaults, Owner()))


def _set_without_cluster(demand: Demand, setting: Setting) -> Amounts:
    """Return what is in force, else what the first profile sets, else a multiple of the largest demand."""
    running = setting.running.get(demand.key)
    if running is not None and min(*_figures(running.current)) > UNSET:
        return running.current
    compute, vram = (setting.start_factor * demand.most(resource) for resource in Resource)
    assumed = Amounts(Amount(compute, compute), Amount(vram, vram))
    setter = next((tried.spec for tried in setting.tried if tried.spec.resources is not None), None)
    return assumed if setter is None else configured(setter, assumed).amounts


def _known_model(model: str, table: GpuTable) -> str:
    return model if table.lookup(model) is not None else ""


def _figures(amounts: Amounts) -> Figures:
    return amounts.compute.request, amounts.compute.limit, amounts.vram.request, amounts.vram.limit


def by_qos(levels: Sequence[QoS], name: str = "") -> tuple[Tried, ...]:
    """Return the product's defaults of some service levels, named after the level unless a name is given."""
    return tuple(Tried(name or level.value, WorkloadProfileSpec(qos=level)) for level in levels)


def matched(demands: Sequence[Demand], workloads: Sequence[Workload]) -> tuple[tuple[Demand, ...], tuple[str, ...]]:
    """Return the demands under the keys of a cluster's workloads, and sentences about what has no counterpart.

    A demand without a namespace of its own (`default`) also finds the only workload of its name elsewhere.
    """
    keys = {workload.key for workload in workloads}
    by_name: dict[str, list[WorkloadKey]] = {}
    for key in keys:
        by_name.setdefault(key.name, []).append(key)
    found: list[Demand] = []
    strangers: list[str] = []
    for demand in demands:
        namesakes = by_name.get(demand.key.name, [])
        if demand.key in keys:
            found.append(demand)
        elif demand.key.namespace == "default" and len(namesakes) == 1:
            found.append(replace(demand, key=namesakes[0]))
        else:
            strangers.append(str(demand.key))
    idle = sorted(str(key) for key in keys - {demand.key for demand in found})
    notes = [
        *([f"left out, the folder has no such workload: {_listed(strangers)}"] if strangers else []),
        *([f"left out, nothing is known of their use: {_listed(idle)}"] if idle else []),
    ]
    return tuple(found), tuple(notes)


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

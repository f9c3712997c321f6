"""From settings to an agent made of real parts: NVML and pods, or a simulation of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.enforce.actuator import Surroundings, TellsThrottling
from agent.enforce.backend import Backend
from agent.enforce.freeze import Freezer
from agent.enforce.live import LastUse
from agent.enforce.nearness import HearingBackend, Nearness
from agent.enforce.observe import ObserveBackend
from agent.enforce.preempting import Preempting
from agent.enforce.registry import chosen_backend
from agent.enforce.simulated import SimulatedBackend
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import GpuTable, load_gpu_table
from agent.kubeapi import KubeApi
from agent.lockstep import Lockstep, RenderClock
from agent.loop import Agent, Parts
from agent.model.samples import SourceError
from agent.pods.directory import PodDirectory, QuotaPods
from agent.pods.hosttree import HostTree
from agent.pods.known import Follower, NodePods, Places, node_pods
from agent.quotas.store import QuotaStore
from agent.settings import AgentSettings
from agent.simulate.node import Simulation
from agent.simulate.scenario import load_scenario


@dataclass(frozen=True, slots=True)
class Assembled:
    """A ready agent that has ticked once, the clock it lives by, and what moves that clock where it stands still.

    `followers` have to be run: they follow the pods and their devices where somebody tells of them.
    """

    agent: Agent
    clock: Callable[[], float]
    lockstep: Lockstep | None = None
    followers: tuple[Follower, ...] = ()


def assemble(settings: AgentSettings) -> Assembled:
    """Return the agent with its stored quotas in force again.

    Raises:
        SourceError, ScenarioError, StoreError, BackendError, OSError, ValueError: a part cannot be used, and why.
    """
    gpus = load_gpu_table(settings.gpu_table)
    if settings.simulate is not None:
        return _simulated(settings, gpus)
    store = QuotaStore(settings.state_dir)
    pods = node_pods(places(settings), QuotaPods(lambda: store.document), time.monotonic)
    agent = Agent(settings.node, _real(settings, gpus, store, pods))
    agent.tick(_wall_clock())
    return Assembled(agent, _wall_clock, followers=pods.followers)


def places(settings: AgentSettings) -> Places:
    """Return where the pods of this node may be known from."""
    follows = settings.api is not None and settings.follow_pods
    kubelet = settings.kubelet_dir if settings.ask_kubelet else None
    return Places(
        settings.node, settings.pods_file, kubelet, KubeApi(settings.api) if settings.api and follows else None
    )


def _wall_clock() -> float:
    return time.time()  # noqa: TID251  the shell owns the clock


def _real(settings: AgentSettings, gpus: GpuTable, store: QuotaStore, pods: NodePods) -> Parts:
    from agent.nvml.source import NvmlSource

    source = NvmlSource(list_seconds=settings.process_list_seconds)
    live_use = LastUse()
    directory = PodDirectory(settings.proc_root, pods.sources)
    around = replace(surroundings(settings, live_use, directory), memory_limits=source.memory_limits())
    backend = _backend(settings, around)
    return Parts(
        source=source,
        directory=directory,
        enforcer=Enforcer(backend),
        live_use=live_use,
        store=store,
        exporter=Exporter(gpus, settings.render_seconds),
        gpus=gpus,
        source_stats=source.stats,
        exits=pods.exits,
        throttled=backend.throttled if isinstance(backend, TellsThrottling) else None,
        preempting=_preempting(settings, directory),
        nearness=Nearness(source, directory, backend, live_use)
        if isinstance(backend, HearingBackend) and settings.watch_seconds
        else None,
        shrink_below_use=settings.shrink_below_use,
    )


def _preempting(settings: AgentSettings, directory: PodDirectory) -> Preempting | None:
    """Return who stops workers, None where nobody may; whom an earlier run left stopped is let go in both cases."""
    tree = HostTree(settings.cgroup_root)

    def path_of(name: tuple[str, str]) -> str:
        return tree.path_of(directory.cgroup_of_name(name))

    freezer = Freezer(settings.cgroup_root, settings.state_dir, path_of)
    if settings.freeze:
        return Preempting(freezer)
    freezer.recover()
    return None


def surroundings(
    settings: AgentSettings, live_use: LastUse, directory: PodDirectory | None = None, *, has_driver: bool = False
) -> Surroundings:
    """Return what actuators stand in on this node; without a directory no worker's cgroup is known."""
    from agent.nvml.limits import NvmlMemoryLimits

    tree = HostTree(settings.cgroup_root)
    return Surroundings(
        live_use=live_use,
        tflops_of=live_use.tflops_of,
        index_of=live_use.index_of,
        state_dir=settings.state_dir,
        cgroup_of=(lambda worker: tree.path_of(directory.cgroup_of(worker))) if directory is not None else lambda _: "",
        memory_limits=NvmlMemoryLimits() if has_driver else None,
        cgroup_root=settings.cgroup_root,
        tfshm_root=settings.tfshm_root,
        hamicore_root=settings.hamicore_root,
        mps_root=settings.mps_root,
        options={"hamicore.sm_reload": str(settings.hamicore_sm_reload).lower()},
        shrink_below_use=settings.shrink_below_use,
    )


def _backend(settings: AgentSettings, around: Surroundings) -> Backend:
    if settings.backend == "observe":
        return ObserveBackend(around.live_use)
    if settings.backend == "simulated":
        return SimulatedBackend(around.live_use, settings.simulated_dir, shrink_below_use=settings.shrink_below_use)
    return chosen_backend(around, settings.compute_backends, settings.vram_backends)


def _simulated(settings: AgentSettings, gpus: GpuTable) -> Assembled:
    assert settings.simulate is not None
    scenario = load_scenario(settings.simulate)
    node = settings.node or scenario.node
    if node != scenario.node:
        raise SourceError(f"the scenario is for node {scenario.node!r}, this is {node!r}")
    live_use = LastUse()
    backend = _backend(settings, surroundings(settings, live_use))
    limits_of = backend.limits_of if isinstance(backend, SimulatedBackend) else lambda _worker, _uuid: None
    simulation = Simulation(scenario, limits_of, gpus)
    parts = Parts(
        source=simulation,
        directory=simulation,
        enforcer=Enforcer(backend),
        live_use=live_use,
        store=QuotaStore(settings.state_dir),
        exporter=Exporter(gpus, settings.render_seconds),
        gpus=gpus,
        witness=simulation,
        shrink_below_use=settings.shrink_below_use,
    )
    if settings.lockstep:
        render = RenderClock()
        # Each advance counts one on that clock: rendered once an advance, and stale never.
        exporter = Exporter(gpus, render_every_seconds=1.0, clock=render)
        agent = Agent(node, replace(parts, exporter=exporter))
        lockstep = Lockstep(agent, simulation, settings.tick_seconds, render)
        return Assembled(agent, lambda: lockstep.now, lockstep)
    agent = Agent(node, parts)
    agent.tick(_wall_clock())
    return Assembled(agent, _wall_clock)

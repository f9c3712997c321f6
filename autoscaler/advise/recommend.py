"""One shot over a live Prometheus: who runs, what they used, what they should have; nothing is written anywhere.

With a cluster the configuration comes from its profiles and annotations; figures in force are always those that the
agents report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autoscaler.advise.advice import Advice, advice_of, broken_advice
from autoscaler.advise.once import say
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.workload import ClusterView, Discovered, Workload
from autoscaler.ports import Clock, Cluster
from autoscaler.read.catchup import Reach
from autoscaler.read.discovery import discover
from autoscaler.read.inventory import SERIES, Inventory, inventory_of
from autoscaler.read.prometheus import history_of
from autoscaler.settings import Settings


async def recommended(
    settings: Settings, clock: Clock, min_samples: int, progress: Callable[[int, int], None]
) -> list[Advice]:
    """Return the advice for every workload that runs; `progress` hears of each part of the history that was read.

    Raises:
        HistoryError: Prometheus can't be read.
        ClusterError: the cluster can't be read.

    """
    now = clock.now()
    history = history_of(settings)
    try:
        view = await _view(settings, clock)
        inventory = inventory_of(await history.points(SERIES, now), now)
        snapshot = gathered(inventory, view, now)
        reach = Reach(settings.bin_seconds, settings.settled_seconds, settings.history_seconds)
        said = await say(snapshot, history, reach, progress)
    finally:
        await history.close()
    found = snapshot.discovered
    return [*advice_of(found.workloads, said, min_samples), *map(broken_advice, found.broken)]


def gathered(inventory: Inventory, view: ClusterView | None, now: float) -> Snapshot:
    """Return what runs and, where a cluster was read, what its objects want.

    A workload that only one of the two knows is there as that one tells it.
    """
    if view is None:
        return Snapshot(now, Discovered(inventory.workloads), inventory.nodes)
    running = {workload.key: workload for workload in inventory.workloads}
    found = discover(view, inventory.nodes)
    unusable = {broken.key for broken in found.broken}
    workloads = [_as_it_runs(workload, running.pop(workload.key, None)) for workload in found.workloads]
    workloads += [workload for key, workload in running.items() if key not in unusable]
    workloads.sort(key=lambda workload: workload.key)
    return Snapshot(now, replace(found, workloads=tuple(workloads)), inventory.nodes)


def _as_it_runs(workload: Workload, running: Workload | None) -> Workload:
    """Return a workload of the cluster with the workers that report, and the figures they report."""
    if running is None:
        return workload
    config = workload.config
    if not config.gpu_model:
        config = replace(config, gpu_model=running.config.gpu_model)
    return replace(workload, config=config, current=running.current, workers=running.workers)


async def _view(settings: Settings, clock: Clock) -> ClusterView | None:
    if settings.cluster_dir is None and settings.kubeconfig is None:
        return None
    cluster: Cluster
    if settings.cluster_dir is not None:
        cluster = FolderCluster(settings.cluster_dir, clock)
    else:
        from autoscaler.kube.cluster import KubeCluster  # the client costs a second and 60 MB to import

        cluster = await KubeCluster.connect(settings.kubeconfig, clock)
    try:
        return await cluster.read()
    finally:
        await cluster.close()

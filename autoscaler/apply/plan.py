"""From decisions to acts, in an order that no crash can make wrong; pure.

Intents (annotations, replicas) are written first, where they last; `documents` then compares what a node has with what
it should have. Both are level-triggered: planned again after a crash they yield what is still missing, and nothing
twice. Neighbours: `fit` settles what a device has room for, `send` carries plans out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import msgspec

from autoscaler.apply.difference import Told, devices_to_plan
from autoscaler.apply.fit import Held, Key, Standing, Wanted, fit, shrinks_and_grows, smaller
from autoscaler.contract import keys
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, QuotaStatus, WorkerQuota
from autoscaler.model.allowed import Overlay, is_applied, overlay_of
from autoscaler.model.config import Mode
from autoscaler.model.decision import AMOUNT_FIELDS, Decision, Field, field_of
from autoscaler.model.quantity import format_amount
from autoscaler.model.reasons import Cause
from autoscaler.model.resources import Amounts, Resource, Side
from autoscaler.model.snapshot import NodeState
from autoscaler.model.steps import Annotate, ClusterWrite, Scale
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Worker, Workload

ANNOTATION: Final = dict(
    zip(AMOUNT_FIELDS, (keys.TFLOPS_REQUEST, keys.TFLOPS_LIMIT, keys.VRAM_REQUEST, keys.VRAM_LIMIT), strict=True)
)
PAIRS: Final = ((keys.TFLOPS_REQUEST, keys.TFLOPS_LIMIT), (keys.VRAM_REQUEST, keys.VRAM_LIMIT))
NAMES: Final = {key: key.removeprefix(keys.PREFIX) for key in ANNOTATION.values()}
"""What the figures are called in what is noted on objects."""
_Places = Mapping[int, tuple[Key | None, ...]]
"""By position among a node's workers, those with a device that is planned: the names of their places, by device.

None where the device is not planned and stays as it is.
"""


@dataclass(frozen=True, slots=True)
class Documents:
    """What a node is to be sent, in order, and what must wait or can't be had, with the reason."""

    documents: tuple[QuotaDocument, ...] = ()
    held: tuple[Held, ...] = ()


def intents(workload: Workload, decision: Decision) -> tuple[ClusterWrite, ...]:
    """Return the writes that record a decision: annotations of every worker that differs, then replicas.

    A worker that was born with other figures than the workload holds is brought to them, too. Replicas go to the
    owner first and to the TensorFusionWorkload last, because the latter is where the next pass reads them: what a
    crash between the two leaves undone is decided again. The count that a rule by the clock moves away from is noted
    before, because nothing else would remember it.
    """
    overlay, told = overlay_of(decision), cache(texts_of)
    annotated = (annotate(worker, overlay, workload.original, told) for worker in workload.workers)
    amounts = tuple(write for write in annotated if write is not None)
    return (*amounts, *_note(workload, decision), *_scales(workload, decision))


def annotate(
    worker: Worker,
    overlay: Overlay,
    original: Amounts,
    told: Callable[[Amounts], Mapping[str, str]] | None = None,
) -> Annotate | None:
    """Return what is to be written to a worker, None: nothing; the first time with the user's `original` beside it.

    `told` is `texts_of`, once for workers that hold the same.
    """
    told = told or texts_of
    wanted = overlay.over(worker.current)
    if wanted is worker.current:
        return None
    before, after = told(worker.current), told(wanted)
    moved = {key for key, text in after.items() if before.get(key) != text}
    # One of a pair that stands alone speaks for both, so the other must be told beside a figure that moves.
    beside = {key for pair in PAIRS if moved.intersection(pair) for key in pair if key not in worker.annotations}
    changes: dict[str, str | None] = {key: text for key, text in after.items() if key in moved | beside}
    if not changes:
        return None
    if keys.AUTOSCALING_ORIGINAL not in worker.annotations:
        changes[keys.AUTOSCALING_ORIGINAL] = noted(told(original))
    ours = changes.keys() | {ANNOTATION[field] for field in overlay.fields()}
    changes[keys.AUTOSCALING_APPLIED] = noted({key: text for key, text in after.items() if key in ours})
    return Annotate(worker.ref, changes, was=worker.annotations)


def quotas_of(workload: Workload, worker: Worker, amounts: Amounts, state: NodeState) -> WorkerQuota | Held:
    """Return a worker's quota on its node for these amounts (TFLOPs, bytes); Held while its devices are not known."""
    uid = worker.ref.uid
    devices = worker.devices or _devices_seen(uid, worker.container, state.quotas)
    if not devices:
        return Held(uid, "", f"DevicesUnknown: nobody has told which devices of {state.node} the worker runs on")
    compute, vram = amounts.compute, amounts.vram
    if not math.isfinite(compute.request + compute.limit + vram.request + vram.limit):
        return Held(uid, "", "AmountsUnknown: the worker's request or limit is not known")
    figures = compute.request, compute.limit, math.ceil(vram.request), math.ceil(vram.limit)
    quotas = tuple([DeviceQuota(uuid, *figures) for uuid in devices])
    ref = worker.ref
    return WorkerQuota(uid, ref.namespace, ref.name, workload.key.name, workload.config.qos, quotas, worker.container)


def kept_quotas(state: NodeState, workloads: Collection[WorkloadKey]) -> tuple[WorkerQuota, ...]:
    """Return what a node was last told about the workers of workloads that can't be judged now, to tell it again."""
    kept = []
    for worker in state.quotas.workers if state.quotas and workloads else ():
        quotas = tuple(device.desired for device in worker.devices if device.desired is not None)
        if quotas and WorkloadKey(worker.namespace, worker.workload) in workloads:
            qos = worker.qos or QoS.MEDIUM
            name = worker.pod_uid, worker.namespace, worker.pod, worker.workload
            kept.append(WorkerQuota(*name, qos, quotas, worker.container))
    return tuple(kept)


def documents(state: NodeState, desired: Sequence[WorkerQuota], epoch: int, told: Told | None = None) -> Documents:
    """Return what brings a node from what it was told to what is desired: nothing, one document, or two.

    Two where on one device one worker shrinks and another grows: first the smaller of old and new everywhere, then the
    target; the second is for when the first is acknowledged, and planning again on that answer yields it again. What
    the node would refuse (a ceiling over the device, VRAM requests that don't fit) is left out and named in `held`;
    so is growth beside a shrink that is not in force yet. Workers that are not desired leave the document.

    A document the node already has is not sent again, even where it could not apply it: the agent keeps it and tries
    again on every tick, so another PUT would add nothing. `generation` grows for ever, whatever the epoch.
    """
    status = state.quotas
    if status is None or not state.reachable:
        return Documents(held=_all_held(desired, f"AgentUnreachable: {state.error or 'its quotas are not known'}"))
    planned = devices_to_plan(state, desired, told)
    if not planned:
        return Documents()
    standing = _standing(status, planned)
    places = _places(desired, planned, standing)
    wanted = {
        key: (desired[position], quota)
        for position, names in places.items()
        for key, quota in zip(names, desired[position].devices, strict=True)
        if key is not None
    }
    target, held = fit(wanted, standing, {device.uuid: device for device in state.devices})
    current = {key: one.desired for key, one in standing.items()}
    if target == current and not _renamed(wanted, standing):
        return Documents(held=held)
    if epoch < status.epoch:
        return Documents(held=_all_held(desired, f"Superseded: epoch {status.epoch} rules {state.node}, not {epoch}"))
    contents = [smaller(current, target)] if shrinks_and_grows(current, target) else []
    return Documents(
        documents=tuple(
            QuotaDocument(epoch, status.generation + number, state.node, _listed(desired, places, content))
            for number, content in enumerate((*contents, target), start=1)
        ),
        held=held,
    )


def texts_of(amounts: Amounts) -> dict[str, str]:
    """Return the annotations that state these amounts, without those that are not known."""
    return {
        ANNOTATION[field_of(resource, side)]: format_amount(resource, value)
        for resource in Resource
        for side, value in zip(Side, (amounts[resource].request, amounts[resource].limit), strict=True)
        if math.isfinite(value)
    }


def noted(texts: Mapping[str, str]) -> str:
    """Return amounts, by their annotation, as they are noted beside them."""
    return json.dumps({NAMES[key]: text for key, text in texts.items()}, separators=(",", ":"))


def _note(workload: Workload, decision: Decision) -> Iterator[Annotate]:
    """Keep the count of before a rule on the object, for as long as such a rule, and no layer, decides on replicas."""
    figure, noted = decision[Field.REPLICAS], workload.original_replicas
    ruled, layered = figure.cause is Cause.CRON, workload.config.replicas_policy.mode is Mode.ON
    if noted is None and ruled and not layered and workload.exists and is_applied(figure) and figure.changed:
        text = json.dumps({"replicas": str(workload.replicas)}, separators=(",", ":"))
        yield Annotate(workload.ref, {keys.AUTOSCALING_ORIGINAL: text})
    elif noted is not None and not ruled and (layered or noted == workload.replicas):
        yield Annotate(workload.ref, {keys.AUTOSCALING_ORIGINAL: None})


def _scales(workload: Workload, decision: Decision) -> tuple[Scale | Annotate, ...]:
    """Return what sets the count, and last a note of it: a count that differs later was moved by somebody else."""
    figure = decision[Field.REPLICAS]
    if not (is_applied(figure) and figure.changed):
        return ()
    # Several owners share the workers: none of them can be given the sum.
    refs = [] if workload.scale_target is None else [workload.scale_target]
    refs += [workload.ref] if workload.exists else []
    scales = tuple(Scale(ref, round(figure.allowed)) for ref in refs)
    return (*scales, Annotate(workload.ref, _count_note(round(figure.allowed)))) if workload.exists else scales


def _count_note(replicas: int) -> dict[str, str | None]:
    """Return the annotation by which an object remembers the count that was set here."""
    return {keys.AUTOSCALING_APPLIED: json.dumps({"replicas": str(replicas)}, separators=(",", ":"))}


def _devices_seen(uid: str, container: str, status: QuotaStatus | None) -> tuple[str, ...]:
    if status is None:
        return ()
    return tuple(
        device.uuid
        for worker in status.workers
        if worker.pod_uid == uid and (not container or worker.container in {"", container})
        for device in worker.devices
    )


def _standing(status: QuotaStatus, planned: Collection[str]) -> dict[Key, Standing]:
    return {
        Key(worker.pod_uid, worker.container, device.uuid): Standing(worker, device, device.desired)
        for worker in status.workers
        for device in worker.devices
        if device.uuid in planned and device.desired is not None
    }


def _places(desired: Iterable[WorkerQuota], planned: Collection[str], standing: Iterable[Key]) -> _Places:
    alone = _alone(standing)
    return {
        position: tuple([_key(alone, worker, one.uuid) if one.uuid in planned else None for one in worker.devices])
        for position, worker in enumerate(desired)
        for quota in worker.devices
        if quota.uuid in planned
    }


def _alone(standing: Iterable[Key]) -> dict[tuple[str, str], Key | None]:
    """Return the only worker of a pod on a device, which needs no container's name; None where there are several."""
    alone: dict[tuple[str, str], Key | None] = {}
    for key in standing:
        place = key.pod_uid, key.uuid
        alone[place] = None if place in alone else key
    return alone


def _key(alone: Mapping[tuple[str, str], Key | None], worker: WorkerQuota, uuid: str) -> Key:
    """Return the name under which the node knows this place."""
    known = alone.get((worker.pod_uid, uuid))
    if known is not None and not (worker.container and known.container):
        return known
    return Key(worker.pod_uid, worker.container, uuid)


def _renamed(wanted: Wanted, standing: Mapping[Key, Standing]) -> bool:
    """Tell whether a worker's service level or workload is not what the node was told."""
    return any(
        told.worker.workload != worker.workload or told.worker.qos not in {None, worker.qos}
        for worker, told in ((one, standing[key]) for key, (one, _) in wanted.items() if key in standing)
    )


def _listed(
    desired: Iterable[WorkerQuota], places: _Places, content: Mapping[Key, DeviceQuota]
) -> tuple[WorkerQuota, ...]:
    """Return a document's quotas: of what was planned the content, of everything else what is desired."""
    listed = list(desired)
    for position, names in places.items():
        worker = listed[position]
        pairs = zip(names, worker.devices, strict=True)
        quotas = tuple([quota if key is None else content[key] for key, quota in pairs if not key or key in content])
        if quotas != worker.devices:
            listed[position] = msgspec.structs.replace(worker, devices=quotas)
    return tuple([worker for worker in listed if worker.devices])


def _all_held(desired: Iterable[WorkerQuota], reason: str) -> tuple[Held, ...]:
    return tuple(Held(worker.pod_uid, quota.uuid, reason) for worker in desired for quota in worker.devices)

"""What a pod that is being born belongs to and wants, by the very rules that discovery goes by; pure.

The pod speaks for itself, not its owner's template: that was read earlier, and may have changed since. Neighbours:
`birth` and `judge` go on from here, `lookup` reads the surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from autoscaler.admission.review import Review
from autoscaler.contract import keys
from autoscaler.errors import ConfigError
from autoscaler.model.profile import parse_spec
from autoscaler.model.resolve import Defaults
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ClusterView, Manifest
from autoscaler.read.configure import Resolution, inputs_of, settle
from autoscaler.read.membership import WORKLOAD_KIND, group_by_workload
from autoscaler.read.owners import Owners, controller_of

_NO_DEFAULTS: Final = Defaults()
_READ: Final = ("labels", "annotations", "ownerReferences")


@dataclass(frozen=True, slots=True)
class Place:
    """The workload that a pod belongs to, and who asks for it, such as `Deployment lab/chat`."""

    key: WorkloadKey
    speaker: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the cluster has around a pod.

    `workload`, `profile`: None where there is none. `has_workers`: somebody starts worker pods for the workload.
    `complete` False: not everything could be read, so what is missing here may well exist.
    """

    place: Place | None = None
    workload: Manifest | None = None
    profile: Manifest | None = None
    has_workers: bool = False
    complete: bool = True


def pod_of(review: Review) -> Manifest | None:
    """Return what is read of the pod of a question; None for what the API server would not send as a pod.

    A controller's pod may have no name yet, only the prefix of one.
    """
    pod = review.object
    if not isinstance(pod, Mapping) or not _is_shaped(pod):
        return None
    metadata = pod["metadata"]
    name = metadata.get("name") or review.name or metadata.get("generateName") or "pod"
    named = {"name": name, "namespace": review.namespace or metadata.get("namespace") or "default"}
    kept = {field: metadata[field] for field in _READ if metadata.get(field)}
    containers = [{"name": str(one.get("name", ""))} for one in (pod.get("spec") or {}).get("containers") or ()]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**named, **kept}, "spec": {"containers": containers}}


def place_of(pod: Manifest, owners: Sequence[Manifest]) -> Place | None:
    """Return where a pod belongs; None for one that takes no part, or whose owner should be there and is not."""
    groups = group_by_workload(ClusterView(pods=(pod,), owners=tuple(owners))).groups
    key = next((key for key, group in groups.items() if group.pods), None)
    if key is None:
        return None
    top = Owners(owners).top(pod)
    kind, name = ("Pod", pod["metadata"]["name"]) if top is None or top.manifest is None else (top.kind, top.name)
    return Place(key, f"{kind} {key.namespace}/{name}")


def resolution_of(pod: Manifest, around: Surroundings) -> Resolution:
    """Return what the pod's annotations, its profile and its workload come to, or all that is wrong."""
    assert around.place is not None
    key = around.place.key
    alone = dict(pod["metadata"], name=key.name)
    reference = controller_of(pod)
    if reference is not None and reference.get("kind") != WORKLOAD_KIND:
        # Its owner is not in this view; the name is enough to bring it to its workload.
        del alone["ownerReferences"]
    view = ClusterView(
        pods=({**pod, "metadata": alone},), workloads=() if around.workload is None else (around.workload,)
    )
    group = next(group for group in group_by_workload(view).groups.values() if group.pods)
    profile = usable(around.profile)
    profiles = {} if profile is None else {(key.namespace, profile["metadata"]["name"]): profile}
    resolution = settle(inputs_of(group, profiles, _NO_DEFAULTS))
    problems = tuple(replace(problem, source=around.place.speaker) for problem in resolution.problems)
    return replace(resolution, problems=problems)


def profile_named(pod: Manifest) -> str:
    """Return the WorkloadProfile that a pod names, empty for none."""
    return str((pod["metadata"].get("annotations") or {}).get(keys.WORKLOAD_PROFILE, ""))


def is_worker(pod: Manifest) -> bool:
    """Tell whether a pod is labelled as a worker, started by whoever plays the operator's part."""
    return keys.WORKLOAD in (pod["metadata"].get("labels") or {})


def usable(profile: Manifest | None) -> Manifest | None:
    """Return a profile that can be read; a broken one is its author's problem, not the pod's."""
    if profile is None:
        return None
    try:
        parse_spec(profile.get("spec"))
    except ConfigError:
        return None
    return profile


def _is_shaped(pod: Mapping[str, Any]) -> bool:
    metadata, spec = pod.get("metadata"), pod.get("spec")
    if not isinstance(metadata, Mapping) or not (spec is None or isinstance(spec, Mapping)):
        return False
    texts = (metadata.get("name"), metadata.get("generateName"), metadata.get("namespace"))
    return (
        all(text is None or isinstance(text, str) for text in texts)
        and all(_is_texts(metadata.get(field)) for field in ("labels", "annotations"))
        and _are_mappings(metadata.get("ownerReferences"))
        and _are_mappings((spec or {}).get("containers"))
    )


def _is_texts(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()))


def _are_mappings(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, Mapping) for item in value))

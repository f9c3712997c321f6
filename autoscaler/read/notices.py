"""What owners are told about keys that stand in the wrong place, or are misspelt; pure.

Such an object may take no part at all, so that no workload could carry the message: it is an event on the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX
from autoscaler.model.annotations import typo_warnings
from autoscaler.model.reasons import News
from autoscaler.model.workload import EMPTY, Manifest, Notice, ref_of
from autoscaler.read.owners import controller_of, pod_template


def notices_of(owners: Iterable[Manifest]) -> tuple[Notice, ...]:
    """Return what is to be told to owners at the top; those between them and the pods only carry copies."""
    return tuple(notice for owner in owners if _has_keys(owner) for notice in _notices(owner))


def _has_keys(owner: Manifest) -> bool:
    metadata, template = owner["metadata"], pod_template(owner).get("metadata") or EMPTY
    maps = (metadata.get("annotations"), metadata.get("labels"), template.get("annotations"), template.get("labels"))
    return any(_is_ours(key) for one in maps if one for key in one) and controller_of(owner) is None


def _notices(owner: Manifest) -> Iterator[Notice]:
    ref, template = ref_of(owner), pod_template(owner).get("metadata") or EMPTY
    metadata, labels = owner["metadata"], template.get("labels") or EMPTY
    annotations = sorted(key for key in metadata.get("annotations") or EMPTY if _is_ours(key))
    labelled = sorted(key for key in metadata.get("labels") or EMPTY if _is_ours(key) and key not in labels)
    if annotations or labelled:
        silent = "" if keys.ENABLED in labels or keys.WORKLOAD in labels else _SILENT
        text = f"{', '.join((*annotations, *labelled))} on the {ref.kind} itself changes nothing: it belongs on the "
        yield Notice(ref, News.MISPLACED_KEY, f"{text}pod template (spec.template.metadata){silent}")
    misspelt = [*typo_warnings(template.get("annotations") or EMPTY), *typo_warnings(labels)]
    if misspelt:
        yield Notice(ref, News.MISSPELT_KEY, "; ".join(misspelt))


_SILENT = f"; without the label {keys.ENABLED}: 'true' there its pods take no part"


@lru_cache(maxsize=4_096)
def _is_ours(key: str) -> bool:
    return key.startswith(PREFIX)

"""What is refused at admission, with the words in which ConfigValid would say it later; pure.

Refused is only what is wrong by itself. What waits for another object, or contradicts one, is a warning here and a
condition later: manifests come in any order. An update is refused only for what it brings in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from autoscaler.admission.pods import Surroundings, profile_named, resolution_of, usable
from autoscaler.admission.review import Answer, Review
from autoscaler.contract import keys
from autoscaler.errors import Problem
from autoscaler.model.annotations import typo_warnings
from autoscaler.model.problems import ABSENT
from autoscaler.model.resolve import REQUEST_KEYS
from autoscaler.model.validate import validate_documents
from autoscaler.model.validation import Document, ValidationReport
from autoscaler.model.workload import EMPTY, Manifest
from autoscaler.read.configure import SPEC_FIELDS

_UNKNOWN_FIELD: Final = "a known field"
"""How problems about a field begin that no version of ours has: theirs, where newer definitions are installed."""


def judge_pod(pod: Manifest, around: Surroundings) -> Answer:
    """Return whether a pod's annotations can be used."""
    metadata = pod["metadata"]
    typos = typo_warnings({**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})})
    if around.place is None:
        return Answer(warnings=tuple(typos))
    resolution = resolution_of(pod, around)
    contradicting = {
        (problem.path, problem.allowed) for problem in resolution.inputs.problems if problem.path in SPEC_FIELDS
    }
    excused = [
        problem
        for problem in resolution.problems
        if (problem.path, problem.allowed) in contradicting or _waits(problem, pod, around)
    ]
    refused = [problem for problem in resolution.problems if problem not in excused]
    warnings = (*typos, *map(str, excused), *resolution.warnings)
    return Answer(refusal=_text(refused), warnings=warnings)


def judge_profile(review: Review) -> Answer:
    """Return whether a WorkloadProfile or TensorFusionWorkload can be used; its status is nobody's mistake here."""
    if review.old is not None and _spec(review.old) == _spec(review.object):
        return Answer()
    report = _report(review.object)
    before = set(_report(review.old).problems) if review.old is not None else set()
    kept = [one for one in report.problems if one in before or one.allowed.startswith(_UNKNOWN_FIELD)]
    refused = [one for one in report.problems if one not in kept]
    warnings = (*map(str, kept), *(warned.message for warned in report.warnings))
    return Answer(refusal=_text(refused), warnings=warnings)


def _waits(problem: Problem, pod: Manifest, around: Surroundings) -> bool:
    """Tell whether a problem may be gone once an object can be read that the pod names and that can't be read now."""
    annotations = pod["metadata"].get("annotations") or EMPTY
    without_profile = bool(profile_named(pod)) and usable(around.profile) is None
    without_workload = keys.WORKLOAD in annotations and around.workload is None
    if not (without_profile or without_workload or not around.complete):
        return False
    is_absent_amount = problem.path in REQUEST_KEYS and problem.value == ABSENT
    return is_absent_amount or problem.path in {keys.WORKLOAD_PROFILE, keys.WORKLOAD, keys.NO_STANDALONE_WORKER_MODE}


def _report(manifest: Any) -> ValidationReport:
    report = validate_documents([Document("", 0, 0, manifest)])
    return replace(report, problems=tuple(replace(problem, source="") for problem in report.problems))


def _spec(manifest: Any) -> Any:
    return manifest.get("spec") if isinstance(manifest, Mapping) else None


def _text(problems: Iterable[Problem]) -> str:
    return "; ".join(dict.fromkeys(map(str, problems)))

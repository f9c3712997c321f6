"""Manifests judged without a cluster: the same parsers and the same resolution as in the running controller.

References between documents are followed: a Deployment that names a WorkloadProfile resolves with it when it is among
the documents, else what the profile sets is not judged and a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from autoscaler.contract import keys
from autoscaler.errors import ConfigError, Problem
from autoscaler.model.annotations import parse_annotations
from autoscaler.model.config import Configuration
from autoscaler.model.problems import ABSENT, name_problems, shown
from autoscaler.model.profile import KINDS, WorkloadProfileSpec, parse_profile
from autoscaler.model.resolve import REQUEST_KEYS, Defaults, Owner, resolve
from autoscaler.model.validation import Document, Validated, ValidationReport, Warned

_TEMPLATE_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
_REPLICATED: Final = frozenset({"Deployment", "StatefulSet", "ReplicaSet"})
_BARE: Final = "Annotations"


@dataclass(frozen=True, slots=True)
class _Workload:
    """A pod template (or bare annotations) with what resolution needs."""

    document: Document
    kind: str
    name: str
    namespace: str
    annotations: Mapping[str, object]
    labels: Mapping[str, str]
    owner: Owner


_Specs = dict[tuple[str, str, str], WorkloadProfileSpec]
"""Specs by kind, namespace and name."""


def validate_documents(documents: Iterable[Document]) -> ValidationReport:
    """Return everything that is wrong, suspicious and resolved in the documents, in their order."""
    flat = [item for document in documents for item in _flatten(document)]
    specs: _Specs = {}
    # Profiles first: a Deployment may stand before the profile that it names.
    profiles = {place: _profile(item, specs) for place, item in enumerate(flat) if _kind(item) in KINDS}
    return merged([profiles[place] if place in profiles else _other(item, specs) for place, item in enumerate(flat)])


def merged(reports: Sequence[ValidationReport]) -> ValidationReport:
    """Return several reports as one."""
    return ValidationReport(
        tuple(problem for report in reports for problem in report.problems),
        tuple(warning for report in reports for warning in report.warnings),
        tuple(item for report in reports for item in report.objects),
    )


def _flatten(document: Document) -> Iterator[Document]:
    """Yield the document, or the items of a List in its place; empty documents are nothing."""
    body = document.body
    if isinstance(body, Mapping) and str(body.get("kind", "")).endswith("List") and isinstance(body.get("items"), list):
        for item in body["items"]:
            yield from _flatten(replace(document, body=item))
    elif body is not None:
        yield document


def _kind(document: Document) -> str:
    return str(document.body.get("kind", "")) if isinstance(document.body, Mapping) else ""


def _metadata(body: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = body.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def _identity(body: Mapping[str, Any]) -> tuple[str, str]:
    metadata = _metadata(body)
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")


def _profile(document: Document, specs: _Specs) -> ValidationReport:
    """Judge a WorkloadProfile or TensorFusionWorkload and remember its spec for those who name it."""
    namespace, name = _identity(document.body)
    kind = _kind(document)
    try:
        spec = parse_profile(document.body)
    except ConfigError as error:
        return _failed(document, kind, name, error.problems)
    specs[kind, namespace, name] = spec
    try:
        configuration = resolve({}, {}, spec, Defaults(), Owner())
    except ConfigError as error:
        # Amounts may still come from annotations or from the pool.
        problems = [problem for problem in error.problems if not _is_absent_amount(problem)]
        return _failed(document, kind, name, problems)
    return _resolved(document, kind, name, configuration)


def _other(document: Document, specs: _Specs) -> ValidationReport:
    body = document.body
    if not isinstance(body, Mapping):
        return _failed(document, "", "", [Problem("document", shown(body), "a mapping: a manifest, or annotations")])
    if "kind" not in body:
        if any(str(key).startswith(keys.PREFIX) for key in body):
            return _workload(_Workload(document, _BARE, "", "", body, {}, Owner()), specs)
        allowed = f"the kind of the object, or a mapping of {keys.PREFIX} annotations"
        return _failed(document, "", "", [Problem("kind", ABSENT, allowed)])
    if _kind(document) not in _TEMPLATE_PATHS:
        return ValidationReport()
    try:
        return _template(document, specs)
    except ConfigError as error:
        return _failed(document, _kind(document), _identity(body)[1], error.problems)


def _template(document: Document, specs: _Specs) -> ValidationReport:
    """Judge an object with a pod template; ConfigError where its shape keeps it from being read."""
    body, kind = document.body, _kind(document)
    path = _TEMPLATE_PATHS[kind]
    template = _mapping(body, path)
    annotations = _mapping(template, ("metadata", "annotations"), path)
    labels = _mapping(template, ("metadata", "labels"), path)
    outer = _mapping(body, ("metadata", "annotations")) if path else {}
    misplaced = [key for key in outer if str(key).startswith(keys.PREFIX)]
    if not misplaced and not any(str(key).startswith(keys.PREFIX) for key in (*annotations, *labels)):
        return ValidationReport()
    warnings = [f"{key} stands on the {kind}; it belongs on the pod template and is not read here" for key in misplaced]
    if labels.get(keys.ENABLED) != "true":
        warnings.append(f"the pods do not take part without the label {keys.ENABLED}: 'true'")
    namespace, name = _identity(body)
    texts = {key: value for key, value in labels.items() if isinstance(value, str)}
    workload = _Workload(document, kind, name, namespace, annotations, texts, _owner(body, kind, template))
    problems = [replace(item, source=document.where) for item in (*name_problems(body), *_label_problems(labels))]
    noted = ValidationReport(tuple(problems), tuple(Warned(document.where, warning) for warning in warnings))
    return merged([noted, _workload(workload, specs)])


def _label_problems(labels: Mapping[str, object]) -> Iterator[Problem]:
    for key, value in labels.items():
        if not isinstance(value, str):
            yield Problem(f"labels.{key}", shown(value), "a string, in quotes")


def _owner(body: Mapping[str, Any], kind: str, template: Mapping[str, Any]) -> Owner:
    replicas = _mapping(body, ("spec",)).get("replicas")
    containers = _mapping(template, ("spec",)).get("containers")
    names = [str(item.get("name", "")) for item in containers or () if isinstance(item, Mapping)]
    return Owner(
        # Kubernetes runs one pod where the field is absent.
        replicas=(replicas if isinstance(replicas, int) else 1) if kind in _REPLICATED else None,
        containers=tuple(names) if names else None,
    )


def _mapping(body: Mapping[str, Any], path: tuple[str, ...], above: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Return the mapping at a path, an empty one if absent; ConfigError if something else stands on the way."""
    for depth, part in enumerate(path, start=1):
        value = body.get(part)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError([Problem(".".join((*above, *path[:depth])), shown(value), "a mapping")])
        body = value or {}
    return body


def _workload(workload: _Workload, specs: _Specs) -> ValidationReport:
    values = parse_annotations(workload.annotations).values
    joins = values.generate_workload is False
    kind, name = ("TensorFusionWorkload", values.workload) if joins else ("WorkloadProfile", values.profile)
    spec = _find(specs, kind, workload.namespace, name) if name else None
    missing = name is not None and spec is None
    annotations = dict(workload.annotations)
    warnings = []
    if missing:
        warnings = [
            Warned(workload.document.where, f"{kind} {name} is not among the files; what it sets is not judged")
        ]
        annotations.pop(keys.WORKLOAD_PROFILE, None)
    try:
        configuration = resolve(annotations, workload.labels, spec, Defaults(), workload.owner)
    except ConfigError as error:
        problems = [problem for problem in error.problems if not (missing and _waits(problem, name))]
        report = _failed(workload.document, workload.kind, workload.name, problems)
    else:
        configuration = replace(configuration, profile=values.profile or "")
        report = _resolved(workload.document, workload.kind, workload.name, configuration)
    return merged([ValidationReport(warnings=tuple(warnings)), report])


def _find(specs: _Specs, kind: str, namespace: str, name: str) -> WorkloadProfileSpec | None:
    """Return the spec of that name in the same namespace; a namespace left out may be any."""
    for (its_kind, its_namespace, its_name), spec in specs.items():
        if (its_kind, its_name) == (kind, name) and (not namespace or its_namespace in (namespace, "")):
            return spec
    return None


def _is_absent_amount(problem: Problem) -> bool:
    return problem.path in REQUEST_KEYS and problem.value == ABSENT


def _waits(problem: Problem, name: str | None) -> bool:
    """Tell whether a problem is only about a referenced object that is not here."""
    return _is_absent_amount(problem) or (problem.path == keys.WORKLOAD and problem.value == name)


def _failed(document: Document, kind: str, name: str, problems: Iterable[Problem]) -> ValidationReport:
    located = tuple(replace(problem, source=document.where) for problem in problems)
    return ValidationReport(problems=located, objects=(Validated(document.where, kind or "document", name, None),))


def _resolved(document: Document, kind: str, name: str, configuration: Configuration) -> ValidationReport:
    warnings = tuple(Warned(document.where, text) for text in configuration.warnings)
    return ValidationReport(warnings=warnings, objects=(Validated(document.where, kind, name, configuration),))

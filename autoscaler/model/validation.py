"""What `validate` reads and reports: documents in, problems, warnings and resolved configurations out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from autoscaler.errors import Problem
from autoscaler.model.config import Configuration, Mode
from autoscaler.model.problems import ABSENT
from autoscaler.model.quantity import format_amount
from autoscaler.model.resources import SPECS, Resource


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: the file it stands in, its place there (index from 0, line from 1), and its content."""

    source: str
    index: int
    line: int
    body: Any

    @property
    def where(self) -> str:
        """File and line, as editors understand it."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that is allowed but probably not meant."""

    source: str
    message: str


@dataclass(frozen=True, slots=True)
class Validated:
    """One object and what it resolves to; None where a problem or a missing reference keeps it from resolving."""

    source: str
    kind: str
    name: str
    configuration: Configuration | None


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Everything found in a set of documents."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Warned, ...] = ()
    objects: tuple[Validated, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are allowed."""
        return not self.problems


def render_text(report: ValidationReport) -> str:
    """Return one line for each object, then each warning, then each problem, then a summary."""
    lines = [f"{item.source}: {item.kind} {item.name or '(unnamed)'}: {_summary(item)}" for item in report.objects]
    lines += [f"{warning.source}: warning: {warning.message}" for warning in report.warnings]
    lines += [_problem_line(problem) for problem in report.problems]
    counts = ((len(report.objects), "object"), (len(report.problems), "problem"), (len(report.warnings), "warning"))
    lines.append(", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts))
    return "\n".join(lines) + "\n"


def render_json(report: ValidationReport) -> str:
    """Return the whole report as JSON; amounts are [TFLOPs, bytes], durations seconds."""
    return json.dumps({"ok": report.ok, **plain(report)}, indent=2, ensure_ascii=False) + "\n"


def _problem_line(problem: Problem) -> str:
    found = "is missing" if problem.value == ABSENT else f"{problem.value!r} is not allowed"
    return f"{problem.source}: error: {problem.path}: {found}; allowed: {problem.allowed}"


def _summary(item: Validated) -> str:
    config = item.configuration
    if config is None:
        return "not resolved"
    parts = [_amount_text(config, spec.resource) for spec in SPECS]
    parts += [f"qos {config.qos}", f"{config.gpu_count} GPU a worker"]
    parts += [f"replicas {config.replicas}"] if config.replicas is not None else []
    parts += [f"{name} {policy}" for name, policy in _layers(config) if policy is not Mode.OFF]
    return ", ".join(parts)


def _amount_text(config: Configuration, resource: Resource) -> str:
    amount, spec = config.amounts[resource], SPECS[resource]
    texts = [format_amount(resource, value) for value in (amount.request, amount.limit)]
    unit = spec.unit if resource is Resource.COMPUTE else spec.noun
    return f"{'/'.join(dict.fromkeys(texts))} {unit}"


def _layers(config: Configuration) -> Iterator[tuple[str, Mode]]:
    yield "requests", config.requests.mode
    yield "limits", config.limits.mode
    yield "replicas", config.replicas_policy.mode


def plain(value: Any) -> Any:
    """Return frozen data as JSON types: what is None is left out, resources go by their key."""
    if isinstance(value, Resource):
        return SPECS[value].key
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: plain(item) for name, item in fields.items() if item is not None}
    if isinstance(value, frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value

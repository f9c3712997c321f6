"""One pass for the terminal: what was decided per workload, as text or as plain data for JSON."""

from __future__ import annotations

import math
from typing import Any

from autoscaler.model.decision import AMOUNT_FIELDS, Decision, Field
from autoscaler.model.resources import SPECS
from autoscaler.report.message import explanation, sentences_of
from autoscaler.report.writer import Passed


def pass_as_data(passed: Passed) -> dict[str, Any]:
    """Return a pass as plain data: amounts in TFLOPs and bytes, null where nothing is known."""
    decisions = _decisions(passed)
    return {
        "at": passed.snapshot.now,
        "history": passed.history_error or "read",
        "workloads": [
            {
                "namespace": decision.key.namespace,
                "name": decision.key.name,
                "figures": {_name(field): _figure(decision, field) for field in Field},
                "message": explanation(decision, sentences_of(decision)),
                "error": passed.errors.get(decision.key, ""),
            }
            for decision in decisions
        ],
        "invalid": [
            {"namespace": broken.key.namespace, "name": broken.key.name, "problems": [str(p) for p in broken.problems]}
            for broken in passed.snapshot.discovered.broken
        ],
        "problems": [str(problem) for problem in passed.snapshot.discovered.problems],
        "nodes": {name: state.error or "reachable" for name, state in sorted(passed.nodes.items())},
    }


def pass_as_lines(passed: Passed) -> list[str]:
    """Return a pass as lines: every workload with its reasons, then whatever was wrong."""
    data = pass_as_data(passed)
    lines = [f"{one['namespace']}/{one['name']}: {one['message']}" for one in data["workloads"]]
    lines += [f"{one['namespace']}/{one['name']}: {text}" for one in data["invalid"] for text in one["problems"]]
    lines += data["problems"]
    lines += [f"node {name}: {text}" for name, text in data["nodes"].items() if text != "reachable"]
    if passed.history_error:
        lines.append(f"history: {passed.history_error}")
    return lines


def _decisions(passed: Passed) -> list[Decision]:
    return [passed.allowed.decision(row) for row in range(len(passed.allowed.fleet))]


def _name(field: Field) -> str:
    if field not in AMOUNT_FIELDS or field.resource is None or field.side is None:
        return "replicas"
    return f"{SPECS[field.resource].key}_{field.side.name.lower()}"


def _figure(decision: Decision, field: Field) -> dict[str, Any]:
    one = decision[field]
    return {
        "mode": one.mode.value,
        "current": _known(one.current),
        "recommended": _known(one.wanted),
        "allowed": _known(one.allowed),
        "cause": one.cause.value,
        "verdict": one.verdict.value,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None

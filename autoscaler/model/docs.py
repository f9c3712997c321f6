"""Reference pages in Markdown, rendered from the same tables and models that judge manifests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from autoscaler.contract import keys
from autoscaler.model.annotations import ANNOTATIONS
from autoscaler.model.crd import structural_schema
from autoscaler.model.fields import DURATION_SCHEMA, QUANTITY_SCHEMA, RATIO_SCHEMA, STEP_SCHEMA, Schema
from autoscaler.model.profile import TensorFusionWorkload, WorkloadProfile

_GENERATED: Final = "<!-- Generated from the model by `tf-autoscaler crds --docs`; edit the model instead. -->"
_KINDS_BY_PATTERN: Final = {
    QUANTITY_SCHEMA["pattern"]: "quantity",
    RATIO_SCHEMA["pattern"]: "ratio",
    STEP_SCHEMA["pattern"]: "count or percentage",
    DURATION_SCHEMA["pattern"]: "duration",
}
_RESOLUTION: Final = """\
A value is looked for in this order, each field on its own:

1. the annotation on the pod template,
2. the WorkloadProfile that `tensor-fusion.ai/workload-profile` names,
3. the default of the GPU pool or the cluster,
4. the built-in default.

A missing request is the limit and a missing limit is the request; VRAM that neither annotation nor profile tells is
estimated where the four `model-` annotations are set. A value that is not allowed is never replaced by a
default: the workload keeps its last good configuration, and the condition `ConfigValid=False` names key, value and what
is allowed. Keys that look like a typo of a known one are named in a warning."""
_NOTATION: Final = """\
- **quantity**: a Kubernetes quantity. TFLOPs as `10`, `"12.5"` or `500m`; bytes as `4Gi`, `6.5Gi` or `1536Mi`. Quote
  decimals: the API server refuses an unquoted `0.5` here.
- **ratio**: a number or a string; `0.1`, `"0.1"` and `"10%"` are the same.
- **duration**: `30s`, `5m`, `1h30m`, `1.5h`, `7d`; units `ms`, `s`, `m`, `h`, `d`, `w`.
- **count or percentage**: `2` or `"50%"`.

Fields of `autoScalingConfig` have no default in the schema: absent means that the workload's QoS decides.
A layer whose block is absent is off; with `enable` absent or `false` it only recommends; with `true` it is applied.
Each layer's annotation (`auto-requests`, `auto-limits`, `auto-replicas`) has the last word."""


def render_docs() -> dict[str, str]:
    """Return the reference pages by file name."""
    return {"annotations.md": _annotations_page(), "workloadprofile.md": _profile_page()}


def _annotations_page() -> str:
    rows = [
        f"| `{spec.key.removeprefix(keys.PREFIX)}` | {_cell(spec.allowed)} | {_cell(spec.meaning)} |"
        for spec in ANNOTATIONS
    ]
    return "\n".join(
        [
            "# Annotations",
            "",
            _GENERATED,
            "",
            f"All keys begin with `{keys.PREFIX}` and belong on the pod template, not on the Deployment; values are",
            "strings.",
            f"A pod takes part when it has the label `{keys.ENABLED}: 'true'`.",
            "",
            "| key | allowed | meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"The controller itself writes `{keys.AUTOSCALING_ORIGINAL}`: the user's figures before the first change,",
            f"`{keys.AUTOSCALING_APPLIED}`: what it wrote to a worker last, `{keys.AUTOSCALING_BORN}`: whose decision",
            "a pod was born with (see [admission](../admission.md)), and, on a TensorFusionWorkload,",
            f"`{keys.AUTOSCALING_ADOPTED}`: figures that somebody else set and that count as the user's own since.",
            "",
            "## Which value counts",
            "",
            _RESOLUTION,
            "",
        ]
    )


def _profile_page() -> str:
    profile, workload = structural_schema(WorkloadProfile), structural_schema(TensorFusionWorkload)
    lines = [
        "# WorkloadProfile and TensorFusionWorkload",
        "",
        _GENERATED,
        "",
        "Both have the same `spec`. A TensorFusionWorkload (`tfw`) holds the workers that one or more owners share; a",
        "WorkloadProfile (`wp`) holds defaults for the workloads that name it.",
        "",
        "## Notation",
        "",
        _NOTATION,
        "",
    ]
    for title, schema, field in (
        ("spec", profile, "spec"),
        ("WorkloadProfile status", profile, "status"),
        ("TensorFusionWorkload status", workload, "status"),
    ):
        rows = _rows(schema["properties"][field], "")
        lines += [f"## {title}", "", "| field | type | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _rows(schema: Schema, prefix: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        required = " (required)" if name in schema.get("required", ()) else ""
        yield f"| `{path}` | {_cell(_type(field))}{required} | {_cell(field['description'])} |"
        if "properties" in field:
            yield from _rows(field, f"{path}.")
        elif "items" in field:
            yield from _rows(field["items"], f"{path}[].")


def _type(field: Schema) -> str:
    named = _KINDS_BY_PATTERN.get(field.get("pattern", ""))
    if named is not None:
        return named
    if "enum" in field:
        return ", ".join(str(choice) for choice in field["enum"])
    kind: Any = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "integer":
        return f"integer{_range(field)}"
    return {"object": "mapping"}.get(kind, str(kind))


def _range(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if high is None or high >= 2**31 - 1:
        return "" if low is None else f", {low} or more"
    return f", {low} to {high}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

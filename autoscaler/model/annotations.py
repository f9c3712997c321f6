"""Annotations under `tensor-fusion.ai/`: one table of keys says how each is read, what is allowed and what it means.

`parse_annotations` reads them all and reports every problem at once; a value that cannot be read counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, get_args

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX, QoS
from autoscaler.errors import Problem
from autoscaler.model import sizing
from autoscaler.model.config import Pause
from autoscaler.model.fields import Isolation
from autoscaler.model.layers import TARGETS
from autoscaler.model.problems import NAME_ALLOWED, is_name, near, shown
from autoscaler.model.profile import MAX_GPU_COUNT
from autoscaler.model.quantity import BYTES_ALLOWED, TFLOPS_ALLOWED, parse_amount
from autoscaler.model.resources import Resource
from autoscaler.model.sizing import ModelSize, Precision
from autoscaler.model.upstream import UPSTREAM_KEYS

GPU_LIBRARY_CONTAINER: Final = "inject-lib"
"""The container that brings the GPU library; never the user's own."""

_SWITCH: Final = "'true' or 'false'"
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_MAX_REPLICAS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Annotations:
    """The values that were set, typed; None is absent. Amounts are indexed by Resource (TFLOPs, bytes)."""

    tflops_request: float | None = None
    tflops_limit: float | None = None
    vram_request: int | None = None
    vram_limit: int | None = None
    qos: QoS | None = None
    gpu_count: int | None = None
    gpu_model: str | None = None
    pool: str | None = None
    replicas: int | None = None
    auto_requests: bool | None = None
    auto_limits: bool | None = None
    auto_replicas: bool | None = None
    profile: str | None = None
    workload: str | None = None
    generate_workload: bool | None = None
    inject_containers: tuple[str, ...] | None = None
    is_local_gpu: bool | None = None
    no_standalone_worker: bool | None = None
    autoscale: bool | None = None
    autoscale_target: frozenset[Resource] | None = None
    auto_resources: bool | None = None
    isolation: str | None = None
    dedicated_gpu: bool | None = None
    pause: Pause | None = None
    revert: bool | None = None
    model_params: float | None = None
    model_precision: Precision | None = None
    model_context: float | None = None
    model_users: int | None = None

    @property
    def model_size(self) -> ModelSize | None:
        """The size of the model that the workload serves; None where its weights are not told."""
        if self.model_params is None or self.model_precision is None:
            return None
        return ModelSize(self.model_params, self.model_precision, self.model_context, self.model_users)

    @property
    def requests(self) -> tuple[float | None, float | None]:
        """Requests, indexed by Resource."""
        return (self.tflops_request, self.vram_request)

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Limits, indexed by Resource."""
        return (self.tflops_limit, self.vram_limit)


@dataclass(frozen=True, slots=True)
class AnnotationSpec:
    """One key: the field of Annotations it fills, its parser (ValueError if not allowed), and its documentation."""

    key: str
    field: str
    parse: Callable[[str], object]
    allowed: str
    meaning: str


def _amount(resource: Resource) -> Callable[[str], float]:
    return lambda text: parse_amount(resource, text.strip())


def _switch(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone would take "1_0", " 1 " and digits of other scripts.
        if re.fullmatch("[0-9]{1,10}", text) is None or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return parse


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(text)
    return text


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text.strip()


def _containers(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(map(is_name, names)):
        raise ValueError(text)
    return names


def _pause(text: str) -> Pause:
    if text == "false":
        return Pause()
    if text in {"true", "up", "down"}:
        return Pause(up=text != "down", down=text != "up")
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(text)
    return Pause(up=True, down=True, until=datetime.fromisoformat(text.upper()).timestamp())


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse


_ISOLATIONS: Final[tuple[str, ...]] = get_args(Isolation)
_S = AnnotationSpec

ANNOTATIONS: Final = (
    _S(keys.TFLOPS_REQUEST, "tflops_request", _amount(Resource.COMPUTE), TFLOPS_ALLOWED,
       "FP16 TFLOPs that each worker is guaranteed on each of its GPUs. Absent: the limit."),
    _S(keys.TFLOPS_LIMIT, "tflops_limit", _amount(Resource.COMPUTE), TFLOPS_ALLOWED,
       "FP16 TFLOPs that each worker may use at most on each of its GPUs. Absent: the request."),
    _S(keys.VRAM_REQUEST, "vram_request", _amount(Resource.VRAM), BYTES_ALLOWED,
       "Device memory that each worker is guaranteed on each of its GPUs. Absent: the limit."),
    _S(keys.VRAM_LIMIT, "vram_limit", _amount(Resource.VRAM), BYTES_ALLOWED,
       "Device memory that each worker may use at most on each of its GPUs. Absent: the request."),
    _S(keys.QOS, "qos", QoS, "one of low, medium, high, critical",
       "Service level: how much is reserved, how fast idle VRAM is released, who gives first when a GPU is short. "
       "Absent: medium."),
    _S(keys.GPU_COUNT, "gpu_count", _whole(1, MAX_GPU_COUNT), f"a whole number from 1 to {MAX_GPU_COUNT}",
       "GPUs per worker; the four amounts are per GPU. Absent: 1."),
    _S(keys.GPU_MODEL, "gpu_model", _text, "the name of a GPU model such as A100", "GPU model to run on."),
    _S(keys.GPU_POOL, "pool", _name, NAME_ALLOWED, "GPU pool to run in. Absent: the default pool."),
    _S(keys.REPLICAS, "replicas", _whole(0, _MAX_REPLICAS), "a whole number, 0 or more",
       "vGPU workers. Absent: as many as the owner's replicas."),
    _S(keys.AUTO_REQUESTS, "auto_requests", _switch, _SWITCH,
       "Switch of layer 3, the reserved baseline: 'true' turns it on without any profile too, 'false' turns it off "
       "and wins over the profile. Absent: the profile decides."),
    _S(keys.AUTO_LIMITS, "auto_limits", _switch, _SWITCH, "Switch of layer 1, the burst ceiling; likewise."),
    _S(keys.AUTO_REPLICAS, "auto_replicas", _switch, _SWITCH, "Switch of layer 2, the number of workers; likewise."),
    _S(keys.WORKLOAD_PROFILE, "profile", _name, NAME_ALLOWED,
       "WorkloadProfile in the same namespace that holds defaults for all of this."),
    _S(keys.WORKLOAD, "workload", _name, NAME_ALLOWED,
       "TensorFusionWorkload whose workers are shared. Absent: named after the top owner."),
    _S(keys.GENERATE_WORKLOAD, "generate_workload", _switch, _SWITCH,
       "'true' (the default) creates the TensorFusionWorkload when it is missing; 'false' joins the one named by "
       "`workload`, and the pod's own amounts, qos and replicas change nothing there."),
    _S(keys.INJECT_CONTAINER, "inject_containers", _containers, "container names, separated by commas",
       "Containers that receive the GPU. Absent: the only container."),
    _S(keys.IS_LOCAL_GPU, "is_local_gpu", _switch, _SWITCH, "Place the pod on the server of its GPU worker."),
    _S(keys.NO_STANDALONE_WORKER_MODE, "no_standalone_worker", _switch, _SWITCH,
       "Only with is-local-gpu 'true': each pod is its own worker."),
    _S(keys.AUTOSCALE, "autoscale", _switch, _SWITCH,
       "Newer TensorFusion form: requests and limits of the autoscale-target; auto-requests and auto-limits win."),
    _S(keys.AUTOSCALE_TARGET, "autoscale_target", TARGETS.__getitem__, "one of compute, tflops, vram, all",
       "Resource that `autoscale` and `auto-resources` scale. Absent: all."),
    _S(keys.AUTO_RESOURCES, "auto_resources", _switch, _SWITCH, "Earlier name of `autoscale`, which wins."),
    _S(keys.ISOLATION, "isolation", _one_of(*_ISOLATIONS), f"one of {', '.join(_ISOLATIONS)}",
       "How workers are kept apart. Absent: soft."),
    _S(keys.DEDICATED_GPU, "dedicated_gpu", _switch, _SWITCH, "The workers have whole GPUs; their amounts stay."),
    _S(keys.AUTOSCALING_PAUSED, "pause", _pause,
       "'true', 'up', 'down', 'false', or an RFC 3339 time such as 2030-01-31T18:00:00Z",
       "Nothing is changed ('true'), grown ('up') or shrunk ('down'); a time pauses everything until then."),
    _S(keys.AUTOSCALING_REVERT, "revert", _switch, _SWITCH,
       "Beside a layer that is turned off: restore the user's own figures."),
    _S(keys.MODEL_PARAMS, "model_params", sizing.parse_params, sizing.PARAMS_ALLOWED,
       "Ours: parameters of the model that is served. With model-precision: until enough was measured, no VRAM figure "
       "is recommended under what the weights take; `tf-autoscaler estimate` prints these keys."),
    _S(keys.MODEL_PRECISION, "model_precision", sizing.parse_precision, sizing.PRECISION_ALLOWED,
       "Ours: how its weights are stored; only together with model-params."),
    _S(keys.MODEL_CONTEXT, "model_context", sizing.parse_context, sizing.CONTEXT_ALLOWED,
       "Ours: tokens of context per user. With all four keys, VRAM that nobody requested is estimated: in GiB, "
       "parameters (B) x bytes per parameter + context (K) x users, spread over the worker's GPUs."),
    _S(keys.MODEL_USERS, "model_users", sizing.parse_users, sizing.USERS_ALLOWED,
       "Ours: users that one worker serves at once; only together with model-context."),
)  # fmt: skip

ALLOWED: Final = {spec.key: spec.allowed for spec in ANNOTATIONS}
"""What may stand there, by key."""
OTHER_KEYS: Final = (
    *(keys.ENABLED, keys.GPU_IDS),
    *(keys.AUTOSCALING_ORIGINAL, keys.AUTOSCALING_APPLIED, keys.AUTOSCALING_ADOPTED, keys.AUTOSCALING_BORN),
)
"""Keys that are known but not read from annotations here."""

_KNOWN: Final = tuple(spec.key for spec in ANNOTATIONS) + OTHER_KEYS


@dataclass(frozen=True, slots=True)
class ParsedAnnotations:
    """What could be read, and what is wrong or suspicious."""

    values: Annotations
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def parse_annotations(annotations: Mapping[str, object]) -> ParsedAnnotations:
    """Read every known key; other keys under the prefix are named in a warning when they look like a typo."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for spec in ANNOTATIONS:
        if spec.key not in annotations:
            continue
        text = annotations[spec.key]
        if not isinstance(text, str):
            # Kubernetes refuses the whole object; YAML's unquoted 1 and true are the usual way to get here.
            problems.append(Problem(spec.key, shown(text), f"{spec.allowed}, in quotes"))
            continue
        try:
            values[spec.field] = spec.parse(text)
        except (ValueError, KeyError):
            problems.append(Problem(spec.key, text, spec.allowed))
    return ParsedAnnotations(Annotations(**values), tuple(problems), tuple(typo_warnings(annotations)))


def typo_warnings(names: Mapping[str, object]) -> list[str]:
    """Return a warning for each unknown key under the prefix that resembles a known one."""
    warnings = []
    for key in names:
        if key.startswith(PREFIX) and key not in _KNOWN and key.removeprefix(PREFIX) not in UPSTREAM_KEYS:
            guess = near(key.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in _KNOWN])
            if guess:
                warnings.append(f"{key} is not a known annotation; did you mean {PREFIX}{guess}?")
    return warnings


def container_problems(named: tuple[str, ...] | None, containers: Sequence[str] | None) -> list[Problem]:
    """Check the containers that receive the GPU against those of the pod (None: not known, nothing to check)."""
    if containers is None:
        return []
    own = [name for name in containers if name != GPU_LIBRARY_CONTAINER]
    allowed = f"a container of the pod: {', '.join(own)}"
    if named is None and len(own) > 1:
        return [Problem(keys.INJECT_CONTAINER, "", f"{allowed} (there are several)")]
    return [Problem(keys.INJECT_CONTAINER, name, allowed) for name in named or () if name not in own]

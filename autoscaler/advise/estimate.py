"""First figures for a workload that nobody has measured yet: the options of `estimate` to annotations and a profile.

The formulas are in `model.sizing`; here every option is read, and all that is wrong with them is told at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import yaml

from autoscaler.contract import keys
from autoscaler.contract.gpus import GpuTable
from autoscaler.errors import ConfigError, Problem
from autoscaler.model import sizing
from autoscaler.model.problems import ABSENT, NAME_ALLOWED, is_name, near
from autoscaler.model.profile import API_VERSION, MAX_GPU_COUNT
from autoscaler.model.quantity import format_amount, round_amount
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.sizing import BYTES_PER_PARAMETER, MeasuredRun, ModelSize

T = TypeVar("T")

RUN_OPTIONS: Final = ("--measured-utilization", "--gpu", "--at-users")
NO_RUN: Final = (
    "TFLOPs are left out: a model's size does not tell them. Run it once with a known number of users and give "
    "--measured-utilization, --gpu and --at-users. There is no default: until tflops-request or tflops-limit is set, "
    "the workload is not scaled and has ConfigValid=False."
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was asked and what comes of it: amounts per worker and GPU, `tflops` None without a measured run."""

    name: str
    size: ModelSize
    gpu_count: int
    vram_bytes: float
    run: MeasuredRun | None = None
    gpu: str = ""
    gpu_gb: int = 0

    @property
    def users(self) -> int:
        """Return the users that one worker serves."""
        assert self.size.users is not None
        return self.size.users

    @property
    def tflops(self) -> float | None:
        """Return the TFLOPs that the measured run stands for."""
        return None if self.run is None else self.run.tflops(self.users)

    @property
    def requests(self) -> dict[str, str]:
        """Return the amounts as manifests write them, by resource."""
        amounts = {Resource.COMPUTE: self.tflops, Resource.VRAM: self.vram_bytes}
        names = {Resource.COMPUTE: "tflops", Resource.VRAM: "vram"}
        return {names[key]: format_amount(key, value) for key, value in amounts.items() if value is not None}

    @property
    def annotations(self) -> dict[str, str]:
        """Return the annotations of the pod template."""
        requests = {"tflops": keys.TFLOPS_REQUEST, "vram": keys.VRAM_REQUEST}
        assert self.size.context_tokens is not None
        return {
            **{requests[name]: text for name, text in self.requests.items()},
            **({keys.GPU_COUNT: str(self.gpu_count)} if self.gpu_count > 1 else {}),
            keys.MODEL_PARAMS: sizing.format_params(self.size.params),
            keys.MODEL_PRECISION: self.size.precision.value,
            keys.MODEL_CONTEXT: sizing.format_context(self.size.context_tokens),
            keys.MODEL_USERS: str(self.users),
        }

    @property
    def profile(self) -> dict[str, Any]:
        """Return the WorkloadProfile, ready to apply."""
        spec: dict[str, Any] = {"resources": {"requests": self.requests}}
        spec |= {"gpuCount": self.gpu_count} if self.gpu_count > 1 else {}
        metadata = {"name": self.name}
        return {"apiVersion": API_VERSION, "kind": "WorkloadProfile", "metadata": metadata, "spec": spec}

    def notes(self) -> Iterator[str]:
        """Yield what a user should know beside the figures."""
        if self.run is None or self.tflops is None:
            yield NO_RUN
            return
        needed = math.ceil(round(self.tflops / self.run.gpu_tflops, 9))
        if needed > 1:
            yield (
                f"{self.requests['tflops']} TFLOPs are more than one {self.gpu} has ({self.run.gpu_tflops:g}): "
                f"spread the users over {needed} workers and estimate for the users of one."
            )
        if self.vram_bytes > self.gpu_gb * GIB:
            yield (
                f"{self.requests['vram']} are more than one {self.gpu} has ({self.gpu_gb} GB): take fewer users a "
                "worker, less context, fewer bytes per parameter, or spread the model over more GPUs (--gpu-count)."
            )


def estimate(options: Mapping[str, str | None], gpus: GpuTable) -> Estimate:
    """Return the estimate that the options (texts by `--name`, None where absent) ask for.

    Raises:
        ConfigError: with every problem found: option, value and what is allowed.

    """
    read = _Reader(options)
    params = read.required("--params", sizing.parse_params, sizing.PARAMS_ALLOWED)
    precision = read.required("--precision", sizing.parse_precision, sizing.PRECISION_ALLOWED)
    context = read.required("--context", sizing.parse_context, sizing.CONTEXT_ALLOWED)
    users = read.required("--users", sizing.parse_users, sizing.USERS_ALLOWED)
    gpu_count = read.optional("--gpu-count", _gpu_count, f"a whole number from 1 to {MAX_GPU_COUNT}") or 1
    name = read.optional("--name", _name, NAME_ALLOWED)
    run = _run(read, gpus)
    if read.problems or params is None or precision is None:
        raise ConfigError(read.problems)
    size = ModelSize(params, precision, context, users)
    assert size.vram_bytes is not None
    gpu = (options.get("--gpu") or "").strip()
    return Estimate(
        name=name or f"model-{sizing.format_params(params)}-{precision}".lower(),
        size=size,
        gpu_count=gpu_count,
        vram_bytes=round_amount(Resource.VRAM, size.vram_bytes / gpu_count),
        run=run,
        gpu=next((alias for alias in gpus.aliases if alias.casefold() == gpu.casefold()), gpu),
        gpu_gb=max(gpus.sizes_gb(gpu), default=0),
    )


def as_data(found: Estimate) -> dict[str, Any]:
    """Return the estimate as plain data: amounts per worker and GPU in bytes and TFLOPs, null where not known."""
    return {
        "vram_bytes": int(found.vram_bytes),
        "tflops": found.tflops,
        "annotations": found.annotations,
        "profile": found.profile,
        "notes": list(found.notes()),
    }


def as_yaml(found: Estimate) -> str:
    """Return the WorkloadProfile as YAML that can be applied; annotations and notes stand above it as comments."""
    lines = ["Annotations of the pod template, in place of the profile or beside it:"]
    lines += [f"  {line}" for line in _annotation_lines(found)]
    lines += found.notes()
    return "".join(f"# {line}\n" for line in lines) + _profile_text(found)


def as_text(found: Estimate) -> str:
    """Return the estimate for people: each figure with its formula, then the manifests, then what to know."""
    size = found.size
    assert size.context_tokens is not None
    spread = f", over {found.gpu_count} GPUs" if found.gpu_count > 1 else ""
    each = BYTES_PER_PARAMETER[size.precision]
    weights = f"{size.params / sizing.BILLION:g} B parameters x {each:g} byte{'' if each <= 1 else 's'}"
    cache = f"{size.context_tokens / sizing.K:g} K of context x {_people(found.users)}{spread}"
    lines = ["Per worker and GPU:", f"  VRAM    {found.requests['vram']:<8} {weights} ({size.precision}) + {cache}"]
    if found.run is not None:
        lines.append(
            f"  TFLOPs  {found.requests['tflops']:<8} {found.run.utilization:g} of {found.run.gpu_tflops:g} TFLOPs "
            f"({found.gpu}) x {_people(found.users)} / {found.run.users} in the measured run"
        )
    lines += ["", "Annotations of the pod template:", *(f"  {line}" for line in _annotation_lines(found))]
    lines += ["", "Or a WorkloadProfile (-o yaml prints it alone, to apply):"]
    lines += [f"  {line}" for line in _profile_text(found).splitlines()]
    lines += ["", *found.notes()] if any(found.notes()) else []
    return "\n".join(lines) + "\n"


class _Reader:
    """Reads options one by one and keeps every problem."""

    def __init__(self, options: Mapping[str, str | None]) -> None:
        self._options = options
        self.problems: list[Problem] = []

    def has(self, option: str) -> bool:
        return self._options.get(option) is not None

    def required(self, option: str, parse: Callable[[str], T], allowed: str) -> T | None:
        if not self.has(option):
            self.problems.append(Problem(option, ABSENT, allowed))
        return self.optional(option, parse, allowed)

    def optional(self, option: str, parse: Callable[[str], T], allowed: str) -> T | None:
        text = self._options.get(option)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.problems.append(Problem(option, text, str(error) or allowed))
            return None


def _run(read: _Reader, gpus: GpuTable) -> MeasuredRun | None:
    """Return the measured run; its three options go together."""
    if not any(map(read.has, RUN_OPTIONS)):
        return None

    def tflops_of(model: str) -> float:
        row = gpus.lookup(model)
        if row is None:
            guess = near(model.strip(), gpus.aliases, cutoff=0.6)
            hint = f"; did you mean {guess}?" if guess else ""
            raise ValueError(f"a GPU model by its NVML name or one of {', '.join(gpus.aliases)}{hint}")
        return row.tflops

    beside = f" (with {' and '.join(filter(read.has, RUN_OPTIONS))})"
    utilization = read.required(RUN_OPTIONS[0], sizing.parse_utilization, sizing.UTILIZATION_ALLOWED + beside)
    tflops = read.required(RUN_OPTIONS[1], tflops_of, f"the GPU model of the run, such as A100{beside}")
    users = read.required(RUN_OPTIONS[2], sizing.parse_users, sizing.USERS_ALLOWED + beside)
    if utilization is None or tflops is None or users is None:
        return None
    return MeasuredRun(utilization, tflops, users)


def _gpu_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_GPU_COUNT):
        raise ValueError
    return int(text)


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError
    return text


def _people(users: int) -> str:
    return "1 user" if users == 1 else f"{users} users"


def _annotation_lines(found: Estimate) -> list[str]:
    return yaml.safe_dump(found.annotations, sort_keys=False).splitlines()


def _profile_text(found: Estimate) -> str:
    return yaml.safe_dump(found.profile, sort_keys=False)

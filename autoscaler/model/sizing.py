"""First figures of a workload that nobody has measured yet, from the size of the model that it serves; pure.

VRAM in GiB = parameters (B) x bytes per parameter + context (K) x users: the weights, and a cache of 1 GiB for each
thousand tokens of each user. TFLOPs = utilization in one measured run x the GPU's dense FP16 TFLOPs x users / users of
that run. Rules of thumb, good for a first day: from then on measured use decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from autoscaler.model.resources import GIB

BILLION: Final = 1e9
K: Final = 1024
"""Tokens: `8K` is 8192."""
PARAMS_ALLOWED: Final = "the model's parameters such as 7B, 0.5B, 350M or 7000000000"
CONTEXT_ALLOWED: Final = "tokens of context per user such as 8K, 8192, 128K or 1M"
USERS_ALLOWED: Final = "a whole number from 1 to 1000000"
UTILIZATION_ALLOWED: Final = "a share of the GPU above 0 and at most 1, such as .35, 0.35 or 35%"

_PARAMS_SPAN: Final = (1.0, 1e15)
_CONTEXT_SPAN: Final = (1.0, 2.0**40)
_UTILIZATION_SPAN: Final = (1e-6, 1.0)
_MOST_USERS: Final = 1_000_000
_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) ?([A-Za-z%]?)")
_PARAMS: Final = {"": 1.0, "K": 1e3, "M": 1e6, "B": BILLION, "T": 1e12}
_TOKENS: Final = {"": 1.0, "K": float(K), "M": float(K * K)}


class Precision(StrEnum):
    """How the weights are stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"
    INT4 = "int4"


BYTES_PER_PARAMETER: Final = {
    Precision.FP32: 4.0,
    Precision.FP16: 2.0,
    Precision.BF16: 2.0,
    Precision.FP8: 1.0,
    Precision.INT8: 1.0,
    Precision.FP4: 0.5,
    Precision.INT4: 0.5,
}
PRECISION_ALLOWED: Final = f"one of {', '.join(Precision)}"


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model as its workload serves it; `context_tokens` and `users` are None where nobody told them."""

    params: float
    precision: Precision
    context_tokens: float | None = None
    users: int | None = None

    @property
    def weights_bytes(self) -> float:
        """Return what the weights alone take, over all GPUs of a worker."""
        return self.params / BILLION * BYTES_PER_PARAMETER[self.precision] * GIB

    @property
    def vram_bytes(self) -> float | None:
        """Return what weights and users take, over all GPUs of a worker; None unless context and users are known."""
        if self.context_tokens is None or self.users is None:
            return None
        return self.weights_bytes + self.context_tokens / K * self.users * GIB


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run of the model on one GPU: its utilization 0..1, the GPU's dense FP16 TFLOPs, and the users it served."""

    utilization: float
    gpu_tflops: float
    users: int

    def tflops(self, users: int) -> float:
        """Return the TFLOPs that so many users need; whole hundred-thousandths, as products of decimals have none."""
        return round(self.utilization * self.gpu_tflops * users / self.users, 5)


def parse_params(text: str) -> float:
    """Return the number of parameters of `7B`; ValueError unless there are some."""
    return _scaled(text, _PARAMS, _PARAMS_SPAN, PARAMS_ALLOWED)


def parse_context(text: str) -> float:
    """Return the tokens of `8K`; ValueError unless there are some."""
    return _scaled(text, _TOKENS, _CONTEXT_SPAN, CONTEXT_ALLOWED)


def parse_users(text: str) -> int:
    """Return a count of users; ValueError unless it is whole and above zero."""
    if re.fullmatch(r"[0-9]{1,7}", text.strip()) is None or not 1 <= int(text) <= _MOST_USERS:
        raise ValueError(USERS_ALLOWED)
    return int(text)


def parse_precision(text: str) -> Precision:
    """Return the precision of a name in any case; ValueError for another."""
    try:
        return Precision(text.strip().lower())
    except ValueError:
        raise ValueError(PRECISION_ALLOWED) from None


def parse_utilization(text: str) -> float:
    """Return `.35` and `35%` as 0.35; ValueError unless it is a share above 0."""
    share = _scaled(text, {"": 1.0, "%": 0.01}, _UTILIZATION_SPAN, UTILIZATION_ALLOWED)
    return round(share, 12)  # 35 x 0.01 has a last bit too many


def format_params(params: float) -> str:
    """Return `7B` for seven billion."""
    return _shortest(params, _PARAMS)


def format_context(tokens: float) -> str:
    """Return `8K` for 8192 tokens."""
    return _shortest(tokens, _TOKENS)


def _scaled(text: str, scales: dict[str, float], span: tuple[float, float], allowed: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    scale = scales.get(match[2].upper()) if match else None
    if match is None or scale is None or not span[0] <= float(match[1]) * scale <= span[1]:
        raise ValueError(allowed)
    return float(match[1]) * scale


def _shortest(value: float, scales: dict[str, float]) -> str:
    """Return a number with the largest scale that it reaches, if that keeps it readable; else in full."""
    unit, scale = max(((unit, scale) for unit, scale in scales.items() if scale <= value), key=lambda one: one[1])
    text = f"{value / scale:g}"
    return f"{text}{unit}" if float(text) * scale == value else f"{value:.0f}"

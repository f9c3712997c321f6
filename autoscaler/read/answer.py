"""Prometheus' answers: JSON with a matrix inside, read without building an object per sample.

Ninety-nine parts in a hundred of a body are pairs `[1700000000.5,"0.25"]`. They are left as bytes, and decoded as one
flat list of numbers a series; only NaN and infinities, which JSON lacks, take a slower way.
"""

from __future__ import annotations

import msgspec
import numpy as np

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Floats
from autoscaler.read.samples import Samples, identity_of, samples_of


class _Series(msgspec.Struct, gc=False):
    metric: dict[str, str]
    values: msgspec.Raw


class _Matrix(msgspec.Struct, gc=False, rename="camel"):
    result_type: str
    result: list[_Series]


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    status: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    error_type: str = ""
    error: str = ""
    warnings: list[str] | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_MATRIX = msgspec.json.Decoder(_Matrix)
_NUMBERS = msgspec.json.Decoder(list[float])


def samples_in(body: bytes) -> Samples:
    """Return the matrix in an answer; series without a workload or device label are kept, others may need them.

    Raises:
        HistoryError: the answer is no success, carries warnings (it may be partial), is no matrix or cut short.

    """
    try:
        answer = _ANSWER.decode(body)
        if answer.status != "success":
            raise HistoryError(f"{answer.error_type or answer.status}: {answer.error or 'no reason given'}")
        if answer.warnings:
            raise HistoryError(f"the answer may be partial: {'; '.join(answer.warnings)}")
        matrix = _MATRIX.decode(answer.data)
    except msgspec.MsgspecError as error:
        raise HistoryError(f"the answer is not what Prometheus answers ({len(body)} bytes): {error}") from error
    if matrix.result_type != "matrix":
        raise HistoryError(f"expected a matrix, got {matrix.result_type!r}")
    return samples_of((identity_of(series.metric), *_points(bytes(series.values))) for series in matrix.result)


def reason_in(body: bytes) -> str:
    """Return the reason in a refused request's body, or its beginning where it is not Prometheus' JSON."""
    try:
        answer = _ANSWER.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode("utf-8", "replace").strip()
    return answer.error or answer.status


def _points(pairs: bytes) -> tuple[Floats, Floats]:
    flat = pairs.translate(None, b'[]" ')
    try:
        numbers = _NUMBERS.decode(b"[" + flat + b"]")
    except msgspec.MsgspecError:
        numbers = _slowly(flat)
    if len(numbers) != pairs.count(b'"'):
        raise HistoryError(f"a series is not pairs of time and value: {pairs[:60]!r}")
    points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _slowly(flat: bytes) -> list[float]:
    """Return the numbers, with the "NaN", "+Inf" and "-Inf" that JSON does not know."""
    try:
        return [float(number) for number in flat.split(b",")]
    except ValueError as error:
        raise HistoryError(f"a series holds something else than numbers: {error}") from error

"""Prometheus' answers: JSON with a matrix inside, read without building an object per sample.

Ninety-nine parts in a hundred of a body are pairs `[1700000000.5,"0.25"]`. They are left as bytes, and decoded as
flat lists of numbers; only NaN and infinities, which JSON lacks, take a slower way.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Floats
from autoscaler.read.samples import Samples, identity_of


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


BATCH_BYTES = 100_000
_ANSWER = msgspec.json.Decoder(_Answer)
_MATRIX = msgspec.json.Decoder(_Matrix)
_NUMBERS = msgspec.json.Decoder(list[float])


def samples_in(body: bytes) -> Samples:
    """Return the matrix in an answer.

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
    return _samples(matrix.result)


def reason_in(body: bytes) -> str:
    """Return the reason in a refused request's body, or its beginning where it is not Prometheus' JSON."""
    try:
        answer = _ANSWER.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode("utf-8", "replace").strip()
    return answer.error or answer.status


def _samples(result: list[_Series]) -> Samples:
    counts = np.array([_points_in(bytes(series.values)) for series in result], dtype=np.int64)
    points = np.concatenate([np.zeros((0, 2)), *(_points(batch) for batch in _batches(result))])
    return Samples(
        identities=tuple(identity_of(series.metric) for series in result),
        owner=np.repeat(np.arange(len(result)), counts),
        times=points[:, 0].copy(),
        values=points[:, 1].copy(),
    )


def _points_in(pairs: bytes) -> int:
    """Return how many pairs of a bare time and a quoted value there are."""
    quotes, commas = pairs.count(b'"'), pairs.count(b",")
    if quotes % 2 or (commas != quotes - 1 and pairs != b"[]"):
        raise HistoryError(f"a series is not pairs of time and value: {pairs[:60]!r}")
    return quotes // 2


def _batches(result: list[_Series]) -> Iterator[bytes]:
    """Yield the pairs of many short series, or of a long one, as one."""
    batch: list[bytes] = []
    size = 0
    for series in result:
        pairs = bytes(series.values)
        if pairs != b"[]":
            batch.append(pairs)
            size += len(pairs)
        if size > BATCH_BYTES:
            yield b",".join(batch)
            batch, size = [], 0
    if batch:
        yield b",".join(batch)


def _points(pairs: bytes) -> Floats:
    """Return (N, 2): time and value."""
    flat = pairs.translate(None, b'[]" ')
    try:
        numbers = _NUMBERS.decode(b"[" + flat + b"]")
    except msgspec.MsgspecError:
        numbers = _slowly(flat)
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def _slowly(flat: bytes) -> list[float]:
    """Return the numbers, with the "NaN", "+Inf" and "-Inf" that JSON does not know."""
    try:
        return [float(number) for number in flat.split(b",")]
    except ValueError as error:
        raise HistoryError(f"a series holds something else than numbers: {error}") from error

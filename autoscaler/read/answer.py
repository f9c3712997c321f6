"""Prometheus' answers: JSON with a matrix inside, read without building an object per sample.

Ninety-nine parts in a hundred of a body are pairs `[1700000000.5,"0.25"]`. They are left as bytes, and decoded as
flat lists of numbers; only NaN and infinities, which JSON lacks, take a slower way.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from autoscaler.errors import HistoryError
from autoscaler.read.samples import Samples, identity_of


class _Series(msgspec.Struct, gc=False):
    metric: dict[str, str]
    values: msgspec.Raw = msgspec.Raw(b"[]")


class _Matrix(msgspec.Struct, gc=False, rename="camel"):
    result_type: str
    result: list[_Series]


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    status: str
    data: _Matrix | None = None
    error_type: str = ""
    error: str = ""
    warnings: list[str] | None = None


BATCH_BYTES = 1_000_000
_ANSWER = msgspec.json.Decoder(_Answer)
_NUMBERS = msgspec.json.Decoder(list[float])


def samples_in(body: bytes) -> Iterator[Samples]:
    """Yield the matrix in an answer, some series at a time, so that no more of it stands unpacked in memory.

    Raises:
        HistoryError: the answer is no success, carries warnings (it may be partial), is no matrix or cut short.

    """
    try:
        answer = _ANSWER.decode(body)
    except msgspec.MsgspecError as error:
        raise HistoryError(f"the answer is not what Prometheus answers ({len(body)} bytes): {error}") from error
    if answer.status != "success":
        raise HistoryError(f"{answer.error_type or answer.status}: {answer.error or 'no reason given'}")
    if answer.warnings:
        raise HistoryError(f"the answer may be partial: {'; '.join(answer.warnings)}")
    if answer.data is None or answer.data.result_type != "matrix":
        raise HistoryError(f"expected a matrix, got {answer.data.result_type if answer.data else 'no data'}")
    yield from map(_samples, _batches(answer.data.result))


def reason_in(body: bytes) -> str:
    """Return the reason in a refused request's body, or its beginning where it is not Prometheus' JSON."""
    try:
        answer = _ANSWER.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode("utf-8", "replace").strip()
    return answer.error or answer.status


def _batches(result: list[_Series]) -> Iterator[list[_Series]]:
    """Yield many short series together, long ones alone; one empty batch where there is none."""
    batch: list[_Series] = []
    size = 0
    for series in result:
        batch.append(series)
        size += len(memoryview(series.values))
        if size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch or not result:
        yield batch


def _samples(batch: list[_Series]) -> Samples:
    pairs = [bytes(series.values) for series in batch]
    counts = [own.count(b'"') // 2 for own in pairs]
    numbers = _numbers(b",".join(own for own in pairs if own != b"[]").translate(None, b'[]" '))
    if len(numbers) != 2 * sum(counts):
        raise HistoryError(f"a series is not pairs of time and value: {pairs[0][:60]!r}")
    points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    return Samples(
        identities=tuple(identity_of(series.metric) for series in batch),
        owner=np.repeat(np.arange(len(batch)), counts),
        times=points[:, 0].copy(),
        values=points[:, 1].copy(),
    )


def _numbers(flat: bytes) -> list[float]:
    try:
        return _NUMBERS.decode(b"[" + flat + b"]")
    except msgspec.MsgspecError:
        return _slowly(flat)


def _slowly(flat: bytes) -> list[float]:
    """Return the numbers, with the "NaN", "+Inf" and "-Inf" that JSON does not know."""
    try:
        return [float(number) for number in flat.split(b",")]
    except ValueError as error:
        raise HistoryError(f"a series holds something else than numbers: {error}") from error

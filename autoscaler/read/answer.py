"""Prometheus' answers: JSON with a matrix inside, read without building an object per sample.

Ninety-nine parts in a hundred of a body are pairs `[1700000000.5,"0.25"]`, which are left as bytes for `pairs` to read.
What is left is mostly labels, the same in every metric and every answer: each set is read once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec
import numpy as np

from autoscaler.errors import HistoryError
from autoscaler.read.pairs import Pairs
from autoscaler.read.samples import Identity, Samples, identity_of


class _Series(msgspec.Struct, gc=False):
    metric: msgspec.Raw
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


class _Point(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: tuple[float, str]


class _Vector(msgspec.Struct, gc=False, rename="camel"):
    result_type: str
    result: list[_Point]


class _Now(msgspec.Struct, gc=False, rename="camel"):
    status: str
    data: _Vector | None = None
    error_type: str = ""
    error: str = ""
    warnings: list[str] | None = None


BATCH_BYTES = 1_000_000
_ANSWER = msgspec.json.Decoder(_Answer)
_NOW = msgspec.json.Decoder(_Now)
_LABELS = msgspec.json.Decoder(dict[str, str])
_NAME = b'{"__name__":"'
_HEAD = b'{"status":"success","data":{"resultType":"matrix","result":['
_METRIC = b'{"metric":'
_VALUES = b',"values":['
_TAIL = b"]}}"
_Texts = tuple[bytes, bytes]


class KnownLabels:
    """The identities of label sets that were read before, by their text without the metric's name."""

    def __init__(self) -> None:
        self._recent: dict[bytes, Identity] = {}
        self._older: dict[bytes, Identity] = {}

    def identity(self, labels: bytes) -> Identity:
        """Return the identity in a JSON object of labels; the same text gives the same object.

        Raises:
            HistoryError: it is no object of strings.

        """
        # Prometheus sorts labels: the name stands first, and some functions drop it.
        named = labels.find(b'",', len(_NAME)) if labels.startswith(_NAME) else -1
        text = labels[1:] if named < 0 else labels[named + 2 :]
        identity = self._recent.get(text) or self._older.get(text)
        if identity is None:
            try:
                identity = identity_of(_LABELS.decode(labels))
            except msgspec.MsgspecError as error:
                raise HistoryError(f"labels are not what Prometheus answers: {labels[:60]!r}: {error}") from error
        self._recent[text] = identity
        return identity

    def forget(self) -> None:
        """Forget what was not asked for since the last call."""
        self._older, self._recent = self._recent, {}


def samples_in(body: bytes | bytearray, known: KnownLabels) -> Iterator[Samples]:
    """Yield the matrix in an answer, some series at a time, so that no more of it stands unpacked in memory.

    Raises:
        HistoryError: the answer is no success, carries warnings (it may be partial), is no matrix or cut short.

    """
    pairs = Pairs()
    for batch in _batches(_cut(body) or _decoded(body)):
        counts, times, values = pairs.columns([text for _, text in batch])
        yield Samples(
            identities=tuple([known.identity(labels) for labels, _ in batch]),
            owner=np.repeat(np.arange(len(batch)), counts),
            times=times,
            values=values,
        )


def points_in(body: bytes | bytearray) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each series in an instant query's answer.

    Raises:
        HistoryError: the answer is no success, carries warnings (it may be partial), or is no vector of numbers.

    """
    try:
        answer = _NOW.decode(body)
        points = [(point.metric, float(point.value[1])) for point in answer.data.result] if answer.data else []
    except (msgspec.MsgspecError, ValueError) as error:
        raise HistoryError(f"the answer is not what Prometheus answers ({len(body)} bytes): {error}") from error
    _check(answer)
    if answer.data is None or answer.data.result_type != "vector":
        raise HistoryError(f"expected a vector, got {answer.data.result_type if answer.data else 'no data'}")
    return points


def reason_in(body: bytes | bytearray) -> str:
    """Return the reason in a refused request's body, or its beginning where it is not Prometheus' JSON."""
    try:
        answer = _ANSWER.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode("utf-8", "replace").strip()
    return answer.error or answer.status


def _cut(body: bytes | bytearray) -> Iterator[_Texts] | None:
    """Return labels and values of each series in a plain success as Prometheus writes it; None for anything else.

    A quote inside of a JSON string is escaped, so these marks stand only between strings; and values know no braces.
    """
    if not body.startswith(_HEAD):
        return None
    edges = array("q")
    start = len(_HEAD)
    while body.startswith(_METRIC, start):
        middle = body.find(_VALUES, start)
        end = body.find(b"}", middle)
        if middle < 0 or end < 0:
            return None
        edges.extend((start + len(_METRIC), middle, middle + len(_VALUES) - 1, end))
        start = end + 2
        if not body.startswith(b",", end + 1):
            break
    view, whole = memoryview(body), iter(edges)
    if not edges or body[start - 1 :] != _TAIL:
        return None
    return ((view[a:b].tobytes(), view[c:d].tobytes()) for a, b, c, d in zip(whole, whole, whole, whole, strict=True))


def _decoded(body: bytes | bytearray) -> Iterator[_Texts]:
    try:
        answer = _ANSWER.decode(body)
    except msgspec.MsgspecError as error:
        raise HistoryError(f"the answer is not what Prometheus answers ({len(body)} bytes): {error}") from error
    _check(answer)
    if answer.data is None or answer.data.result_type != "matrix":
        raise HistoryError(f"expected a matrix, got {answer.data.result_type if answer.data else 'no data'}")
    return ((bytes(series.metric), bytes(series.values)) for series in answer.data.result)


def _check(answer: _Answer | _Now) -> None:
    if answer.status != "success":
        raise HistoryError(f"{answer.error_type or answer.status}: {answer.error or 'no reason given'}")
    if answer.warnings:
        raise HistoryError(f"the answer may be partial: {'; '.join(answer.warnings)}")


def _batches(series: Iterator[_Texts]) -> Iterator[list[_Texts]]:
    """Yield many short series together, long ones alone; one empty batch where there is none."""
    batch: list[_Texts] = []
    size = 0
    is_first = True
    for texts in series:
        batch.append(texts)
        size += len(texts[1])
        if size > BATCH_BYTES:
            yield batch
            batch, size, is_first = [], 0, False
    if batch or is_first:
        yield batch

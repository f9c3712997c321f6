"""The pairs `[1700000000.5,"0.25"]` in Prometheus' answers: text of series to columns of times and values.

No object is built per pair. Three ways, each used where the one before it does not fit: a series that never changes
costs a comparison of its times with the last such series'; pairs as Prometheus writes them have their times read by
arithmetic on columns of digits; anything else is decoded number by number, and refused there if it is no pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Bools, Floats, Ints

Columns = tuple[Floats, Floats]
_Bytes = NDArray[np.uint8]

LONG_BYTES: Final = 2000
"""A series shorter than this is not worth a look of its own."""
_PAIRS: Final = msgspec.json.Decoder(list[tuple[float, str]])
_NUMBERS: Final = msgspec.json.Decoder(list[float])
_QUOTE, _OPENING, _CLOSING, _COMMA, _POINT, _ZERO, _SPACE = b'"[],.0 '
_HEAD_BYTES: Final = 17
"""`[1700000000.500,"`: what stands before a value. Times of whole seconds have no fraction and begin 4 bytes later."""
_WHOLE_BYTES: Final = 13
_WHOLE_AT: Final = _HEAD_BYTES - _WHOLE_BYTES
_WHOLE_DIGITS: Final = range(_WHOLE_AT + 1, _HEAD_BYTES - 2)
_POINT_AT: Final = 11
_DIGITS: Final = (*range(1, _POINT_AT), *range(_POINT_AT + 1, _HEAD_BYTES - 2))


class Pairs:
    """Reads the texts of series, some at a time; remembers the times of the last series that never changed."""

    def __init__(self) -> None:
        self._time_texts: list[bytes] = []
        self._times = np.zeros(0)

    def columns(self, texts: Sequence[bytes]) -> tuple[Ints, Floats, Floats]:
        """Return how many pairs each series has, and the times and values of all, one series after the other.

        Raises:
            HistoryError: a text is no list of pairs of a number and a number in quotes.

        """
        constant = [self._constant(text) if len(text) > LONG_BYTES else None for text in texts]
        others = [text for text, known in zip(texts, constant, strict=True) if known is None]
        counts = [
            len(known[0]) if known else text.count(b'"') // 2 for text, known in zip(texts, constant, strict=True)
        ]
        times, values = _parsed(others)
        if len(others) < len(texts):
            times, values = _woven(constant, counts, (times, values))
        return np.array(counts, dtype=np.int64), times, values

    def _constant(self, text: bytes) -> Columns | None:
        """Return the columns of a series whose values are all the same text; None for any other series."""
        start = text.find(b'"') + 1
        value = text[start : text.find(b'"', start)]
        end, between = b',"%b"]]' % value, b',"%b"],[' % value
        if not text.endswith(end):
            return None
        if b"[[%b%b" % (between.join(self._time_texts), end) != text:
            times = text[2 : -len(end)].split(between)
            try:
                self._times = np.array(_NUMBERS.decode(b"[%b]" % b",".join(times)), dtype=np.float64)
            except msgspec.MsgspecError:
                return None
            self._time_texts = times
        return self._times, np.full(len(self._times), _number(value))


def _woven(constant: Sequence[Columns | None], counts: Sequence[int], others: Columns) -> Columns:
    """Return the columns of all series in their order."""
    parts = []
    first = 0
    for known, count in zip(constant, counts, strict=True):
        if known is None:
            parts.append((others[0][first : first + count], others[1][first : first + count]))
            first += count
        else:
            parts.append(known)
    return np.concatenate([times for times, _ in parts]), np.concatenate([values for _, values in parts])


def _parsed(texts: Sequence[bytes]) -> Columns:
    filled = [text for text in texts if text != b"[]"]
    if not filled:
        return np.zeros(0), np.zeros(0)
    return _by_columns(filled) or _by_number(filled)


def _by_columns(texts: Sequence[bytes]) -> Columns | None:
    """Return the columns of texts as Prometheus writes them; None for anything else."""
    text = np.frombuffer(bytearray(b" " * _HEAD_BYTES + b",".join(texts)), dtype=np.uint8)
    quotes = np.flatnonzero(text == _QUOTE)
    if not len(quotes) or len(quotes) % 2:
        return None
    opening, closing = quotes[::2], quotes[1::2]
    heads = _windows(text, _HEAD_BYTES)[opening - _HEAD_BYTES + 1].view(np.uint8).reshape(-1, _HEAD_BYTES)
    is_whole = heads[:, _WHOLE_AT] == _OPENING
    times = _times(heads, is_whole)
    sizes = np.array([len(own) for own in texts])
    punctuation = len(", ") * len(opening) + np.where(is_whole, _WHOLE_BYTES, _HEAD_BYTES).sum()
    expected = _HEAD_BYTES - 1 + 2 * len(texts) + punctuation + (closing - opening).sum()
    if times is None or expected != len(text) or not (text[closing + 1] == _CLOSING).all():
        return None
    # All but the values and the commas between them becomes white space, which JSON ignores.
    _windows(text, _WHOLE_BYTES)[opening[is_whole] - _WHOLE_BYTES + 1] = np.void(b" " * _WHOLE_BYTES)
    _windows(text, _HEAD_BYTES)[opening[~is_whole] - _HEAD_BYTES + 1] = np.void(b" " * _HEAD_BYTES)
    text[closing] = text[closing + 1] = _SPACE
    ends = _HEAD_BYTES - 1 + np.cumsum(sizes + 1)
    text[ends - sizes], text[ends - 1] = _SPACE, _SPACE
    text[0], text[-1] = _OPENING, _CLOSING
    values = _numbers(text.tobytes())
    return (times, values) if len(values) == len(times) else None


def _windows(text: _Bytes, size: int) -> NDArray[np.void]:
    """Return the `size` bytes from each position on, without copying them."""
    return np.ndarray((len(text) - size + 1,), dtype=f"V{size}", buffer=text, strides=(1,))


def _times(heads: _Bytes, is_whole: Bools) -> Floats | None:
    """Return the time in each head (N, 17); None where one is of neither form."""
    times = np.empty(len(heads))
    for rows, columns, per_second in ((is_whole, _WHOLE_DIGITS, 1), (~is_whole, _DIGITS, 1000)):
        digits = heads[rows][:, columns] - np.uint8(_ZERO)
        if (digits > 9).any():
            return None
        times[rows] = digits @ 10.0 ** np.arange(len(columns))[::-1] / per_second
    fractions = heads[~is_whole]
    are_heads = (fractions[:, 0] == _OPENING).all() and (fractions[:, _POINT_AT] == _POINT).all()
    return times if are_heads and (heads[:, -2] == _COMMA).all() else None


def _by_number(texts: Sequence[bytes]) -> Columns:
    try:
        pairs = [pair for text in texts for pair in _PAIRS.decode(text)]
    except msgspec.MsgspecError as error:
        raise HistoryError(f"a series is not pairs of time and value: {error}: {texts[0][:60]!r}") from error
    return np.array([time for time, _ in pairs]), np.array([_number(value) for _, value in pairs], dtype=np.float64)


def _numbers(listed: bytes) -> Floats:
    """Return the numbers in a JSON list, in which there may be the NaN, +Inf and -Inf that JSON does not know."""
    try:
        return np.array(_NUMBERS.decode(listed), dtype=np.float64)
    except msgspec.MsgspecError:
        return np.array([_number(number) for number in listed[1:-1].split(b",")], dtype=np.float64)


def _number(text: bytes | str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise HistoryError(f"a series holds something else than numbers: {error}") from error

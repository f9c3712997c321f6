"""What becomes of a status on an API server whose definitions know less than ours; pure.

Where TensorFusion's own definitions are installed the server drops the fields that they don't list. What it dropped is
learnt from its answer to a write, so that the same status is not taken for news, and written, for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
"""Where a field stands: keys from the top; the entries of a list share their place."""


def lost_fields(sent: Mapping[str, Any], kept: Mapping[str, Any]) -> frozenset[Path]:
    """Return the places of what was sent and is not in what was kept."""
    return frozenset(_lost(sent, kept, ()))


def learnt(known: frozenset[Path], sent: Mapping[str, Any], kept: Mapping[str, Any]) -> frozenset[Path]:
    """Return the fields that are not as we state them, after one more answer.

    A field that was kept this time is dropped no more. One at the top that stays though it was left out is someone
    else's: leaving it out again changes nothing.
    """
    untold = frozenset(path for path in known if not _has(sent, path))
    return untold | lost_fields(sent, kept) | {(key,) for key in kept if key not in sent}


def without(status: Mapping[str, Any], lost: frozenset[Path]) -> Mapping[str, Any]:
    """Return a status as a server keeps it that drops these fields."""
    return _without(status, lost, ()) if lost else status


def _lost(sent: Any, kept: Any, at: Path) -> Iterator[Path]:
    if isinstance(sent, Mapping) and isinstance(kept, Mapping):
        for key, value in sent.items():
            if key not in kept:
                yield (*at, key)
            else:
                yield from _lost(value, kept[key], (*at, key))
    elif isinstance(sent, list | tuple) and isinstance(kept, list | tuple) and len(sent) == len(kept):
        for one, other in zip(sent, kept, strict=True):
            yield from _lost(one, other, at)


def _has(value: Any, path: Path) -> bool:
    if isinstance(value, list | tuple):
        return any(_has(one, path) for one in value)
    if not path:
        return True
    return isinstance(value, Mapping) and path[0] in value and _has(value[path[0]], path[1:])


def _without(value: Any, lost: frozenset[Path], at: Path) -> Any:
    if isinstance(value, Mapping):
        places = {key: (*at, key) for key in value}
        return {key: _without(one, lost, places[key]) for key, one in value.items() if places[key] not in lost}
    if isinstance(value, list | tuple):
        return [_without(one, lost, at) for one in value]
    return value

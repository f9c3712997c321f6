"""The plain part of YAML, written fast: mappings, lists and one-line scalars in block style.

The library's representer takes milliseconds for a status that is written on every pass; this takes a tenth. What is
not plain (several lines, control characters, fractions, odd keys) is left to the library: `render` then returns None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

_BARE: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
_RESERVED: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
"""Words that YAML 1.1 does not read as text."""

_SHORT: Final = 80


class _NotPlainError(Exception):
    """The value is for the library."""


def render(value: dict[str, Any]) -> str | None:
    """Return a mapping as YAML text that loads to an equal one, or None when it is not plain."""
    try:
        return "".join(f"{line}\n" for line in _mapping(value, ""))
    except _NotPlainError:
        return None


def _mapping(value: dict[str, Any], pad: str) -> Iterator[str]:
    for key, item in value.items():
        if not isinstance(key, str) or len(key) > _SHORT:
            raise _NotPlainError
        name = f"{pad}{_text(key)}:"
        if isinstance(item, dict) and item:
            yield name
            yield from _mapping(item, pad + "  ")
        elif isinstance(item, list) and item:
            yield name
            yield from _list(item, pad)
        else:
            yield f"{name} {_scalar(item)}"


def _list(value: list[Any], pad: str) -> Iterator[str]:
    for item in value:
        if isinstance(item, dict) and item:
            first, *rest = _mapping(item, pad + "  ")
            yield f"{pad}- {first.lstrip(' ')}"
            yield from rest
        elif isinstance(item, list) and item:
            raise _NotPlainError
        else:
            yield f"{pad}- {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return _text(value) if len(value) <= _SHORT else _quoted(value)
    if value is None or isinstance(value, bool | int) or value in ({}, []):
        return json.dumps(value)
    raise _NotPlainError


@lru_cache(maxsize=16_384)
def _text(value: str) -> str:
    if _BARE.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return _quoted(value)


def _quoted(value: str) -> str:
    # Of printable characters JSON escapes only the quote and the backslash, as YAML does.
    if not value.isprintable():
        raise _NotPlainError
    return json.dumps(value, ensure_ascii=False)

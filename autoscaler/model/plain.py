"""Values as JSON and YAML know them; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return mappings as dicts, sequences as lists, and subclasses of str and float (enums, numpy) as these."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    return float(value) if isinstance(value, float) else value

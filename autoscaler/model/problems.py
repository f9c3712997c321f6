"""From what a parser found wrong to problems a user can act on: path, value, what is allowed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoscaler.errors import Problem

ABSENT: Final = ""
"""The value of a problem about something that is missing."""

_MAX_VALUE_CHARACTERS: Final = 120
_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME_ALLOWED: Final = "a Kubernetes name: lower-case letters, digits, '-' and '.', at most 253 characters"
_ALLOWED_BY_TYPE: Final = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "string_type": "a string (in quotes)",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "missing": "a value: the field is required",
    "string_too_short": "a value that is not empty",
}


def shown(value: object) -> str:
    """Return a value as text for a problem, cut where it gets long; of a mapping only the keys."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(str(key) for key in value) + "}"
    elif isinstance(value, list):
        text = f"[{len(value)} items]" if value else "[]"
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 1] + "…"


def near(name: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Return the known name that `name` most probably means, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[match[0]] if match else ""


def is_name(text: str) -> bool:
    """Tell whether a text is a Kubernetes object name (DNS-1123 subdomain)."""
    return len(text) <= 253 and _DNS_NAME.fullmatch(text) is not None


def name_problems(manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the metadata of an object; a name that is absent is left to the API server."""
    metadata = manifest.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        yield Problem("metadata", shown(metadata), "a mapping")
        return
    for field in ("name", "namespace"):
        name = metadata.get(field)
        if name is None:
            continue
        if not isinstance(name, str) or not is_name(name):
            hint = "; replace the placeholder" if isinstance(name, str) and "<" in name else ""
            yield Problem(f"metadata.{field}", shown(name), NAME_ALLOWED + hint)


def field_problems(model: type[BaseModel], error: ValidationError, root: str) -> list[Problem]:
    """Return the problems of a failed validation; `root` is the path of the validated value."""
    problems: list[Problem] = []
    for details in error.errors(include_url=False):
        path = _path(root, details["loc"])
        context = details.get("ctx", {})
        if details["type"] == "conflicts":
            problems += [Problem(f"{path}.{tail}", value, allowed) for tail, value, allowed in context["found"]]
        else:
            value = ABSENT if details["type"] == "missing" else shown(details["input"])
            problems.append(Problem(path, value, _allowed(model, details)))
    return problems


def _path(root: str, location: tuple[int | str, ...]) -> str:
    return root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _allowed(model: type[BaseModel], details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "allowed":
        return str(context["allowed"])
    if kind == "extra_forbidden":
        return _known_fields(model, details["loc"])
    if kind in {"literal_error", "enum"}:
        return f"one of {context['expected']}".replace("'", "")
    if kind in _ALLOWED_BY_TYPE:
        return _ALLOWED_BY_TYPE[kind]
    # pydantic's sentences for ranges and lengths say what should stand there.
    return details["msg"].removeprefix("Input should be ").removeprefix("String should ")


def _known_fields(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    owner = _model_at(model, location[:-1])
    known = sorted(str(field.alias or name) for name, field in owner.model_fields.items())
    guess = near(str(location[-1]), known)
    return f"a known field; did you mean {guess}?" if guess else f"a known field: {', '.join(known)}"


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model that a location inside `model` leads to."""
    for part in location:
        if isinstance(part, int):
            continue
        field = next(field for name, field in model.model_fields.items() if part in (field.alias, name))
        model = next(_models_in(field.annotation))
    return model


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from _models_in(argument)

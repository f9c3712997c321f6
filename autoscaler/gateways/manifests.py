"""Text of a manifest file to objects and back: each document on its own, so that a broken one harms no other.

A file is cut at its `---` lines before anything is parsed. Scalars are read as Kubernetes reads them: a time stays a
string. Neighbours: `folder` keeps the files, `edits` changes the objects. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import yaml

from autoscaler.errors import Problem
from autoscaler.model.workload import Manifest

_MARKER: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
NAME_ALLOWED: Final = "a name of lower-case letters, digits, '-' and '.', such as my-model"
_TEMPLATE: Final = ("spec", "template", "metadata")
_TEMPLATES: Final = {
    **dict.fromkeys(("Deployment", "StatefulSet", "ReplicaSet", "Job"), _TEMPLATE),
    "CronJob": ("spec", "jobTemplate", *_TEMPLATE),
}
"""Where the metadata of the pod template stands."""

_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen at run time
    """Safe loader without YAML's own timestamps: in a manifest they are strings."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # chosen at run time
    """Safe dumper without anchors: every object stands on its own."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  # PyYAML's hook
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document of a file: its text, and what it holds (several objects when it is a List)."""

    text: str
    objects: tuple[Manifest, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse_file(text: str, source: str) -> tuple[Document, ...]:
    """Return the documents of a file; what is wrong with one is in its problems, with file and line."""
    cuts = sorted({0, *(found.start() for found in _MARKER.finditer(text)), len(text)})
    return tuple(_parse_document(text[start:end], source, text.count("\n", 0, start)) for start, end in pairwise(cuts))


def render_document(objects: Sequence[Manifest]) -> Document:
    """Return the document (or documents, one an object) that holds these objects."""
    return Document("".join("---\n" + _render(dict(item)) for item in objects), tuple(objects))


def _render(item: dict[str, Any]) -> str:
    return str(yaml.dump(item, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def _parse_document(text: str, source: str, lines_before: int) -> Document:
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from the safe loader
    except yaml.YAMLError as error:
        return Document(text, problems=(_syntax_problem(error, source, lines_before),))
    except (ValueError, RecursionError) as error:
        where = f"{source}:{lines_before + 1}"
        return Document(text, problems=(Problem("(document)", str(error)[:80], "plain YAML values", where),))
    where = f"{source}:{lines_before + 1}"
    items = _items(content)
    if items is None:
        allowed = "a mapping with apiVersion, kind and metadata"
        return Document(text, problems=(Problem("(document)", _shown(content), allowed, where),))
    checked = [(item, tuple(find_problems(item, where))) for item in items]
    return Document(
        text,
        tuple(item for item, problems in checked if not problems),
        tuple(problem for _, problems in checked for problem in problems),
    )


def _items(content: object) -> list[Manifest] | None:
    """Return the objects of a document: none for an empty one, None when it is not even a mapping."""
    if content is None:
        return []
    if not isinstance(content, dict):
        return None
    if content.get("kind") == "List" and isinstance(content.get("items"), list):
        return [item if isinstance(item, dict) else {} for item in content["items"]]
    return [content]


def _syntax_problem(error: yaml.YAMLError, source: str, lines_before: int) -> Problem:
    mark = getattr(error, "problem_mark", None)
    position = f"{lines_before + mark.line + 1}:{mark.column + 1}" if mark is not None else f"{lines_before + 1}"
    what = getattr(error, "problem", None) or str(error)
    return Problem("(document)", str(what), "well-formed YAML", f"{source}:{position}")


def find_problems(item: Manifest, where: str) -> Iterator[Problem]:
    """Yield what an API server would refuse in any object: shape, names, and labels or annotations that are no text."""
    for key in ("apiVersion", "kind"):
        if not isinstance(item.get(key), str) or not item[key]:
            yield Problem(key, _shown(item.get(key)), "a string", where)
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        yield Problem("metadata", _shown(metadata), "a mapping with a name", where)
        return
    for key, required in (("name", True), ("namespace", False)):
        value = metadata.get(key)
        if (required or value is not None) and not (isinstance(value, str) and _NAME.fullmatch(value)):
            yield Problem(f"metadata.{key}", _shown(value), NAME_ALLOWED, where)
    for key in ("spec", "status"):
        if not isinstance(item.get(key, {}), dict):
            yield Problem(key, _shown(item[key]), "a mapping", where)
    yield from _text_maps(metadata, "metadata", where)
    yield from _template_problems(item, where)


def _template_problems(item: Manifest, where: str) -> Iterator[Problem]:
    """Yield what is wrong on the way to the pod template's metadata, and in it."""
    at, path = item, ""
    for key in _TEMPLATES.get(str(item.get("kind")), ()):
        value, path = at.get(key), f"{path}.{key}".lstrip(".")
        if value is None:
            return
        if not isinstance(value, dict):
            if path != "spec":
                yield Problem(path, _shown(value), "a mapping", where)
            return
        at = value
    if path:
        yield from _text_maps(at, path, where)


def _text_maps(metadata: Mapping[str, Any], path: str, where: str) -> Iterator[Problem]:
    for field in ("labels", "annotations"):
        values = metadata.get(field) or {}
        if not isinstance(values, dict):
            yield Problem(f"{path}.{field}", _shown(values), "a mapping of strings", where)
            continue
        for key, value in values.items():
            if not isinstance(value, str):
                yield Problem(f"{path}.{field}[{key}]", _shown(value), "a string; put it in quotes", where)


def _shown(value: object) -> str:
    return "" if value is None else str(value)[:80]

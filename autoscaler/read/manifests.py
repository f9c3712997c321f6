"""Manifests from files: every document that can be read, and a problem for every one that cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from autoscaler.errors import Problem
from autoscaler.model.validate import merged, validate_documents
from autoscaler.model.validation import Document, ValidationReport

SUFFIXES: Final = (".yaml", ".yml", ".json")

_SEPARATOR: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_DIRECTIVES_ONLY: Final = re.compile(r"(\s*(%[^\n]*|#[^\n]*)?(\n|$))*")
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a set of files holds."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]


def validate_files(paths: Iterable[Path]) -> ValidationReport:
    """Judge every document in the files, and in the manifests of the folders, that are named."""
    manifests = load_documents(paths)
    return merged([ValidationReport(problems=manifests.problems), validate_documents(manifests.documents)])


def load_documents(paths: Iterable[Path]) -> Manifests:
    """Read files (and folders, by suffix); a broken document or file is a problem, the others are still read."""
    documents: list[Document] = []
    problems: list[Problem] = []
    for path in (file for named in paths for file in _files(named)):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem("file", str(path), f"a readable UTF-8 file ({error})", source=str(path)))
            continue
        for part in _parts(text):
            try:
                body = yaml.load(part.text, Loader=_ManifestLoader)  # noqa: S506  a SafeLoader with stricter keys
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                # PyYAML lets some scalars (0b_) and deep nesting escape as plain Python errors.
                problems.append(_broken(path, part, error))
            else:
                documents.append(Document(str(path), part.index, part.line, body))
    return Manifests(tuple(documents), tuple(problems))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    else:
        yield path


@dataclass(frozen=True, slots=True)
class _Part:
    """The text of one document; `line` is that of its first content, `offset` the lines before the text."""

    text: str
    index: int
    line: int
    offset: int


def _parts(text: str) -> Iterator[_Part]:
    """Split at document markers, so that a broken document does not hide those after it."""
    starts = [0, *(match.start() for match in _SEPARATOR.finditer(text))]
    index = 0
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:end]
        if _DIRECTIVES_ONLY.fullmatch(part.removeprefix("---")):
            continue
        offset = text.count("\n", 0, start)
        yield _Part(part, index, offset + 1 + _lines_before_content(part), offset)
        index += 1


def _lines_before_content(part: str) -> int:
    for number, line in enumerate(part.splitlines()):
        content = line.removeprefix("---").strip()
        if content and not content.startswith("#"):
            return number
    return 0


def _broken(path: Path, part: _Part, error: Exception) -> Problem:
    line, reason = part.line, str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # What is missing at the end is reported beyond it.
        last = len(part.text.rstrip().splitlines()) - 1
        line = part.offset + min(error.problem_mark.line, last) + 1
        reason = error.problem or error.context or reason
    return Problem(f"document {part.index}", reason, "valid YAML", source=f"{path}:{line}")


class _ManifestLoader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: dates stay text, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


_ManifestLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

"""Files into documents: broken ones are problems, the others are still read."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoscaler.read.manifests import load_documents, validate_files

GOOD = "tensor-fusion.ai/tflops-limit: '20'\ntensor-fusion.ai/vram-limit: 4Gi\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_each_document_knows_its_place_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "# first\na: 1\n---\n\n# second\nb: 2\n--- # third\nc: 3\n---\n# nothing\n")
    documents = load_documents([path]).documents
    assert [(item.index, item.line, item.body) for item in documents] == [
        (0, 2, {"a": 1}), (1, 6, {"b": 2}), (2, 8, {"c": 3}),
    ]  # fmt: skip
    assert documents[1].where == f"{path}:6"


def test_a_broken_document_is_a_problem_and_those_around_it_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "a: 1\n---\nb: [1,\nc: 2\n---\nd: 4\n")
    read = load_documents([path])
    assert [item.body for item in read.documents] == [{"a": 1}, {"d": 4}]
    [problem] = read.problems
    assert (problem.path, problem.allowed) == ("document 1", "valid YAML")
    assert problem.source == f"{path}:4"


def test_a_key_that_stands_twice_is_a_problem_as_for_the_api_server(tmp_path: Path) -> None:
    [problem] = load_documents([write(tmp_path, "a.yaml", "a:\n  b: 1\n  b: 2\n")]).problems
    assert (problem.value, problem.source) == ("the key b stands twice", f"{tmp_path}/a.yaml:3")


@pytest.mark.parametrize(
    "text",
    [
        "? {a: 1}\n: 2\n",
        "? [1, 2]\n: 3\n",
        "!!python/object:os.system {}\n",
        "a: &x [*x]\n",
        "a: 0b_\n",
        "a: " + "[" * 2000 + "]" * 2000,
        "kind: WorkloadProfile\nspec: &x {resources: *x, qos: *x}\n",
        "\t- a\n",
    ],
)
def test_odd_yaml_is_a_problem_and_never_a_crash(tmp_path: Path, text: str) -> None:
    odd = write(tmp_path, "odd.yaml", text)
    read = validate_files([odd, write(tmp_path, "good.yaml", GOOD)])
    assert read.objects[-1].configuration is not None
    assert read.problems


def test_merge_keys_and_dates_read_as_kubernetes_reads_them(tmp_path: Path) -> None:
    text = "base: &base {a: 1}\nother: {<<: *base, b: 2}\npaused: 2030-01-31T18:00:00Z\n"
    [document] = load_documents([write(tmp_path, "a.yaml", text)]).documents
    assert document.body["other"] == {"a": 1, "b": 2}
    assert document.body["paused"] == "2030-01-31T18:00:00Z"


def test_directives_and_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    read = load_documents([write(tmp_path, "a.yaml", "\ufeff%YAML 1.1\n---\na: 1\n")])
    assert [item.body for item in read.documents] == [{"a": 1}]
    assert read.problems == ()


def test_folders_are_read_by_suffix_and_missing_files_are_problems(tmp_path: Path) -> None:
    write(tmp_path, "b.yml", GOOD)
    write(tmp_path, "a.json", '{"kind": "Service"}')
    write(tmp_path, "notes.txt", "not: [yaml")
    read = load_documents([tmp_path, tmp_path / "gone.yaml"])
    assert [Path(item.source).name for item in read.documents] == ["a.json", "b.yml"]
    [problem] = read.problems
    assert problem.source == str(tmp_path / "gone.yaml")


def test_a_file_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    assert len(load_documents([path]).problems) == 1


def test_problems_of_files_and_of_documents_come_together(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "a: [")
    write(tmp_path, "b.yaml", GOOD + "tensor-fusion.ai/qos: urgent\n")
    report = validate_files([tmp_path])
    assert [problem.path for problem in report.problems] == ["document 0", "tensor-fusion.ai/qos"]

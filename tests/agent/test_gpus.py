"""The GPU table: names as NVML gives them, aliases, overrides, and rows that are wrong."""

from __future__ import annotations

import pytest
import structlog

from agent.gpus import GpuTable, load_gpu_table, read_rows

HEADER = "name_pattern,aliases,fp16_dense_tflops,vram_gb,source\n"
NAMES = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "A100-SXM4-40GB": 312,
    "Tesla V100-PCIE-32GB": 112,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla T4": 65,
    "NVIDIA A10G": 70,
    "NVIDIA L40S": 362,
    "nvidia l40s": 362,
    "L40s": 362,
    "V100": 125,
    "NVIDIA GH200 480GB": 990,
    "NVIDIA GeForce RTX 4090": 165,
}


@pytest.fixture(scope="module")
def table():
    return load_gpu_table()


@pytest.mark.parametrize(("name", "tflops"), NAMES.items())
def test_a_model_has_its_dense_fp16_figure(table, name, tflops):
    assert table.lookup(name).tflops == tflops


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA L40S-48Q", "NVIDIA A100X", "", "Ascend910B"])
def test_a_model_that_only_resembles_a_row_is_unknown(table, name):
    assert table.lookup(name) is None


def test_an_unknown_model_is_warned_about_once():
    table = load_gpu_table()
    with structlog.testing.capture_logs() as logs:
        assert [table.lookup("NVIDIA X1") for _ in range(3)] == [None] * 3
    assert [(entry["log_level"], entry["model"]) for entry in logs] == [("warning", "NVIDIA X1")]


def test_every_row_has_a_source_and_its_aliases_find_it():
    table = load_gpu_table()
    for _, row in table._patterns:
        assert row.source
        assert row.vram_gb
        for alias in row.aliases:
            assert table.lookup(alias).tflops == row.tflops


def test_an_override_stands_before_the_built_in_rows(tmp_path):
    path = tmp_path / "gpus.csv"
    path.write_text(HEADER + "NVIDIA L4,L4|mine,100,24,measured here\nNVIDIA X1,X1,1.5,8|16,vendor\n", encoding="utf-8")
    table = load_gpu_table(path)
    assert [table.lookup(name).tflops for name in ("NVIDIA L4", "mine", "X1", "NVIDIA L40")] == [100, 100, 1.5, 181]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,tflops\nA,1\n", "name_pattern"),
        (HEADER + "A,,many,8,s\n", "mine.csv:2"),
        (HEADER + "A,,1,8,s\nB,,0,8,s\n", "mine.csv:3"),
        (HEADER + "A,,inf,8,s\n", "above 0"),
        (HEADER + "A,,1,8,\n", "source"),
        (HEADER + "A,,1,,s\n", "VRAM such as"),
        (HEADER + "A\n", "mine.csv:2"),
    ],
)
def test_a_wrong_row_is_named_with_what_is_allowed(text, said):
    with pytest.raises(ValueError, match=said):
        read_rows(text, "mine.csv")


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"pattern 'A\('"):
        GpuTable(read_rows(HEADER + "A(,,1,8,s\n", "mine.csv"))

"""Forecast models: the one that is shipped, and the one fitted last, kept beside the checkpoint."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from autoscaler.errors import StateError
from autoscaler.model.forecast import ForecastModel, from_json, to_json


def built_in_model() -> ForecastModel:
    """Return the shipped model."""
    return from_json(files("autoscaler.recommend").joinpath("prior.json").read_text(encoding="utf-8"))


def load_model(path: Path) -> ForecastModel:
    """Return a stored model.

    Raises:
        StateError: it can't be read or is another version's.

    """
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is no forecast model: {error}") from error


def store_model(path: Path, model: ForecastModel) -> None:
    """Write a model, replacing the one before as a whole; raises OSError where the disk doesn't take it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(to_json(model), encoding="utf-8")
    partial.replace(path)

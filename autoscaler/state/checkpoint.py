"""Checkpoints: named arrays and metadata in one file, replaced as a whole.

The file is a line with the format's version, the SHA-256 of what follows, and NumPy's own archive without pickles. It
is written beside the old one and renamed over it, so that a kill at any moment leaves the one or the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import StateError

FORMAT = b"tensor-fusion-autoscaler checkpoint 1\n"
METADATA = "metadata.json"


def save(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> None:
    """Write arrays (of numbers, flags or fixed-width text) and JSON metadata, replacing what was saved before.

    Raises:
        StateError: it can't be written; what was saved before is still there.

    """
    if METADATA in arrays:
        raise StateError(f"no array may be named {METADATA!r}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb+") as file:
            _write(file, arrays, metadata)
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, ValueError, TypeError) as error:
        partial.unlink(missing_ok=True)
        raise StateError(f"{path} can't be written: {error}") from error


def load(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and metadata that were saved last.

    Raises:
        StateError: there is no checkpoint, or it is not one that this version can use; history can be read anew.

    """
    try:
        with path.open("rb") as file:
            if file.read(len(FORMAT)) != FORMAT:
                raise StateError(f"{path} is not a checkpoint of this version")
            expected = file.read(hashlib.sha256().digest_size)
            if _digest(file) != expected:
                raise StateError(f"{path} is damaged: its checksum is another")
            file.seek(len(FORMAT) + len(expected))
            return _read(file)
    except (OSError, ValueError, KeyError) as error:
        raise StateError(f"{path} can't be read: {error}") from error


def _write(file: IO[bytes], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> None:
    blank = bytes(hashlib.sha256().digest_size)
    file.write(FORMAT + blank)
    text = json.dumps(dict(metadata), allow_nan=False).encode()
    everything: dict[str, Any] = {**arrays, METADATA: np.frombuffer(text, dtype=np.uint8)}
    np.savez(file, allow_pickle=False, **everything)
    file.seek(len(FORMAT) + len(blank))
    digest = _digest(file)
    file.seek(len(FORMAT))
    file.write(digest)
    file.flush()
    os.fsync(file.fileno())


def _read(file: IO[bytes]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(arrays.pop(METADATA).tobytes())


def _digest(file: IO[bytes]) -> bytes:
    """Return the SHA-256 of the rest of a file."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.digest()


def _sync_folder(folder: Path) -> None:
    """Make the rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

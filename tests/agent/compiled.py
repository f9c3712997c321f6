"""C programs of the tests, compiled once per content."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

import pytest


def compiled(source: Path) -> Path:
    """Return the program made of a C file and the headers beside it; skips where there is no compiler."""
    content = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    program = Path(tempfile.gettempdir()) / f"tf-{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not program.exists():
        fresh = program.with_name(f"{program.name}.{id(content)}")
        try:
            subprocess.run(["gcc", "-O1", "-Wall", "-o", fresh, source], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("gcc is not installed")
        fresh.replace(program)
    return program

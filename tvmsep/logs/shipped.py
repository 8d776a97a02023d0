"""The logs that ship with tvmsep: real measurements of real targets, one folder a target."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def shipped_logs(target: str) -> list[Path]:
    """Paths of the shipped logs of a target; none where it was never measured."""
    folder = resources.files("tvmsep.shipped") / target
    if not folder.is_dir():
        return []
    return sorted(Path(str(p)) for p in folder.iterdir() if p.name.endswith(".jsonl"))

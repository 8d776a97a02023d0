"""Model names made fit for Relax."""

from __future__ import annotations

import re


def identifier(name: str) -> str:
    """`name` with whatever a Relax identifier cannot hold replaced by underscores."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return plain if plain and not plain[0].isdigit() else f"v_{plain}"

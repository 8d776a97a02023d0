"""`python -m tvmsep.cli`."""

from __future__ import annotations

from tvmsep.cli import main

main()

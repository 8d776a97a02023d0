"""A short, seeded part of `benchmarks/fuzz.py`."""

from __future__ import annotations

from fuzz import campaign


def test_damaged_files_are_refused_by_one_message() -> None:
    outcomes, faults = campaign(70, seed=1)
    assert faults == []
    kinds = {name.split()[0] for name in outcomes}
    assert kinds == {".onnx", ".relay", ".tvmsep", ".jsonl", ".toml"}
    refused = sum(n for name, n in outcomes.items() if name.endswith("refused"))
    assert 30 < refused < 70

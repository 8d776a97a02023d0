"""What `benchmarks/faults.py` is made of: boards that can be hurt, and how they are."""

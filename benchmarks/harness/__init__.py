"""What `x86.py` runs engines with: their environments, processes, rounds and tables."""

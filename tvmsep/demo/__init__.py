"""`python -m tvmsep.demo`: a published network tuned, shipped, run, verified and timed."""

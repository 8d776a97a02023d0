"""Measured logs of real targets, one folder a target: data only."""

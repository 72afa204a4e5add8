"""Measurements, as ratios within one run, since machines differ and are noisy. Never part of the tests."""

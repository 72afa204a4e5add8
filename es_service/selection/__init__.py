"""Which samples to train on: pure functions and one table. No Ray, no torch, no files, no clock, no global randomness."""

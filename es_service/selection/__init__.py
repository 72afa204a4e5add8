"""Sample selection: pure functions and one table. No Ray, torch, files, clock or global randomness."""

"""Files of a run: its description, its snapshots. Arrow and JSON only; nothing is ever unpickled."""

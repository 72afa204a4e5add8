"""Ray actors: the score server, and how it is found, started and called."""

"""Ray actors: the score server, how it is found, started and spoken to."""

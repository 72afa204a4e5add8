"""Tables from a user's files: which files, their columns, labels, and what is held out. Nothing imports torch."""

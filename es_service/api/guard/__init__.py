"""Checks of every request: hosts, tokens, rates, sizes; and errors as problem+json."""

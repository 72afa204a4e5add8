"""What every request passes: hosts, tokens, rates, sizes; and errors as problem+json."""

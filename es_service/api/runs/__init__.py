"""The runs there are, and what each says of itself."""

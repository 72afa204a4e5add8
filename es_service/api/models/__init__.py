"""The shapes of answers, for OpenAPI and for the tests that hold answers against them; units are in it."""

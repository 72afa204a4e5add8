"""Response models, for OpenAPI and for the tests that check answers against them; with units."""

"""The HTTP service over runs, read-only; to come. Until then `es-service runs`, `top` and `export` read them."""

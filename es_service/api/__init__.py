"""The HTTP service over runs, read-only, and its dashboard; `create_app` in app.py puts it together."""

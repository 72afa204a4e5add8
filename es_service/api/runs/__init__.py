"""The runs of a storage folder, and their descriptions."""

"""Ray Tune over the settings of a selection: spaces, searches, their trials and reports."""

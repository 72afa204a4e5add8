"""Ray Tune over the settings of a selection: spaces, searches, their trials and reports."""

from __future__ import annotations

from es_service.experiments.tune.search import search

__all__ = ["search"]

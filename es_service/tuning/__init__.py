"""Ray Tune over the settings of a selection: spaces, searches, their trials and reports."""

from __future__ import annotations

from es_service.tuning.searching import search

__all__ = ["search"]

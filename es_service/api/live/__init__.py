"""Reading live runs from their score servers."""

"""Views of one table: filters, statistics, maps, histories, exports."""

"""The honest comparison of methods: paired runs, a short full run for each method, intervals, verdicts, a report."""

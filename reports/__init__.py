"""The report: one page and one summary from the JSON files that the runs wrote."""

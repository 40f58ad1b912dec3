"""The report: a page, a summary and files for CI from the JSON files of a run."""

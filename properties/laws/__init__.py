"""The laws: one file a chapter."""

"""The numbers: precision, particular values, particular batches."""

"""Benchmarks of the steps of training and of engines, and the performance gate; only verified answers are timed."""

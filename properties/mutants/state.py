"""What a network keeps from one call to the next, reads beside its input, or leaves behind."""

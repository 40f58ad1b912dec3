"""The flattening of conv2's maps (N,16,5,5) to features (N,400)."""

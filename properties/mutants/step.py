"""The training step: the order of its six parts, and what is left out."""

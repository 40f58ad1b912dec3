"""Training in 16 bits: autocast and the GradScaler."""

"""The update by hand, weight = weight - learning rate * gradient."""

"""`optim.SGD`: momentum, dampening, decay, groups, state."""

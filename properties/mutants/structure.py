"""The layers: their number, sizes, strides, biases, weights and registration."""

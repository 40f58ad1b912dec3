"""The backward pass: what becomes of the gradients between the loss and `.grad`."""

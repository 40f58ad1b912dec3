"""The loss: `nn.MSELoss`, `nn.CrossEntropyLoss` and the targets that they are given."""

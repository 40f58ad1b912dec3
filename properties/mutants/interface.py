"""What a network is given and refuses: shapes, dtypes, devices, targets, states to load."""

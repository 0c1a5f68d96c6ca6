"""What a model is: its directory, config, weights and forward pass."""

"""What a device runs: the arrays of a step, its operations, products and KV pages."""

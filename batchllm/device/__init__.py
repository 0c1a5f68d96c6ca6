"""The device side of a step: its arrays, operations, products and KV pages."""

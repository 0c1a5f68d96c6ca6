"""The loop: requests in, steps, answers out."""

"""From logits to tokens, and when a request ends."""

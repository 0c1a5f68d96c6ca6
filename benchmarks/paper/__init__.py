"""The BatchLLM paper's experiments that need no GPU: what is shared, in which order, and what it takes to plan it."""

"""What to run in the first minutes on a GPU: README.md."""

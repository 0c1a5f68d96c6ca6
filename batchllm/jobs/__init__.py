"""Jobs: a batch file in, answers out."""

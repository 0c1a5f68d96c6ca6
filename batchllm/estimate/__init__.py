"""What a job would cost, before it runs."""

"""What people see of a run or a plan."""

"""Other tools that run our engine, and other engines that run our plan: a file for each, imported by whom wants it."""

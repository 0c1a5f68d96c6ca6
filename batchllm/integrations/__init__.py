"""Other tools that run our engine, and other engines that run our plan: one file each, imported only by its users."""

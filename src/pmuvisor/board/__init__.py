"""A machine to run guests on."""

"""This machine: its devices, how fast it is, and how its threads and processes behave."""

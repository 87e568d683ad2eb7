"""Bridge kinds: one file each, named after the kind."""

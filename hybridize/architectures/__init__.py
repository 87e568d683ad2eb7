"""Every table of model families, each entry with its reason. No torch."""

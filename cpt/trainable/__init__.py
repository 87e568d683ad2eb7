"""What may learn: one file each, named after the entry of `train` that asks for it."""

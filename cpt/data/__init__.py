"""The text of a training: read, divided, packed into rows once, and given out in their order."""

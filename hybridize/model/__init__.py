"""A model folder as its files tell it, without torch."""

"""A recipe: its file, its sections, and where in the file a mistake is."""

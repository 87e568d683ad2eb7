"""Files and folders: read, hashed, written all at once or not at all."""

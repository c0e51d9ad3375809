"""Where do weights live? Fetches checkpoints, finds them again and removes old ones."""

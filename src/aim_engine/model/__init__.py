"""What must run? A model described by its shapes, from a config, a folder, the catalogue or the hub."""

"""What GPUs are there? Cards and their figures, and the devices of a machine as its own files and tools show them."""

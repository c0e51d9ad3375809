"""What is wrong with this host, what does that cost, and which command mends it? Reads and tells; never changes anything."""

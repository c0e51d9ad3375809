"""What is remembered between runs? Opens the databases of this user on this machine, and keeps them readable."""

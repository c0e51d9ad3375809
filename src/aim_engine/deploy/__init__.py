"""Who makes a plan real? Engine environments, runners for a process, Docker and Kubernetes, and what they leave behind."""

"""What does a plan look like where it has to run? Pure: a plan and a few choices go in, files come out, nothing is written."""

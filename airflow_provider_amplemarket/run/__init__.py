"""What one run does: which calls, what is with each of them, and the downloads."""

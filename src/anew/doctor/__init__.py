"""``anew doctor``: what this machine is, what works on it, and, on request, what its engine really does."""

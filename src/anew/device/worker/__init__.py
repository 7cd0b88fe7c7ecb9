"""A device in a process of its own, so that a framework that aborts or hangs does not take the run with it."""

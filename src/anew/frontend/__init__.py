"""Capture: the torch.compile backend, anew.compile(model), the region's boundary."""

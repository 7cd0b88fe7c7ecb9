"""The emulated engine: parses MIL text and computes as the silicon does."""

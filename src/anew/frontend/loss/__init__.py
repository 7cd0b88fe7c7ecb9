"""The loss region: output embedding and cross-entropy on the engine, tiled over the vocabulary."""

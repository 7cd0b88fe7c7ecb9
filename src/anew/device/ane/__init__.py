"""The route through the classes of AppleNeuralEngine.framework and IOSurface, spoken to from plain Python.

No Mac was at hand: it is written from published accounts (each named where it is used) and tested on strict fakes of
the classes (tests/runtime). Private interfaces may change with any macOS update.
"""

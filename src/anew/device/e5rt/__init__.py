"""The engine through the C functions of Espresso.framework, which need no entitlement.

No Mac was at hand: this route is written against published facts and tested against a strict fake of the library
(tests/runtime). Private interfaces may change with any macOS update.
"""

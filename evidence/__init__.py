"""The full measurements: each module writes one docs/evidence/*.json."""

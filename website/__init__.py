"""The documentation site: README and docs/ with generated references, built by zensical."""

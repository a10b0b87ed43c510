"""The kill matrix: what is left after anything was killed at any moment. `make chaos` runs it."""

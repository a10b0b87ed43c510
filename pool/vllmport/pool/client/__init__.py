"""The Python client: pools, models, results. Light to import: no engine, no validation library."""

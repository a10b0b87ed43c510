"""The Python client: pools, models, results. Light: no engine, no configuration library at import."""

"""Engine drivers. Each module is imported only by the worker that runs it."""

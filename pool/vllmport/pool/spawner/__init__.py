"""The one process that forks workers: tiny, single-threaded, and the last to leave."""

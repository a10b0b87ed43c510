"""The worker process: one engine behind one socket. Started by the spawner, never imported by it."""

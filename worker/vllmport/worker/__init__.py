"""The worker process: one engine behind one socket. The spawner starts it, nobody imports it."""

"""Universal calls in the worker: what may be reached, what a session holds, and how calls run.

`allow.py` and `resolve.py` decide what a name means and who may have it; `refs.py` and
`serialize.py` what travels and what stays; `performing.py` does a call; `room.py` runs the calls of
one session in a thread of its own; `desk.py` is between the rooms and the worker's port.
"""

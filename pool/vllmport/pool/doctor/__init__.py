"""`vllmport doctor`: looks at all that a pool needs, and says how to mend what is wrong.

Each check is a function of what it looks at, and returns a Finding; `examine.py` runs them all.
"""

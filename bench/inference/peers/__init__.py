"""What runs inside the servers that Everloop is measured beside; each file in its peer's own environment.

Nothing here may import Everloop, except `bare.py`, which runs in ours.
"""

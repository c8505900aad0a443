"""The owner directory: which sidecar owns a context.

May import core. The core sees it only through its port.
"""

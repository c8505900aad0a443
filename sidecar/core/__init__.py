"""The domain: identities, isolation keys, managers, limits, outbox, errors, close codes.

Values in, decisions and events out. No I/O, no clock, no transport: imports nothing of the project outside core.
"""

"""Outbox stores: where a manager's messages are kept until acknowledged.

May import core. The core sees a store only through its port.
"""

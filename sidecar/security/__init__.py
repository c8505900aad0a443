"""User tokens, context tokens, key sets and the audit trail.

May import core. Reads key files and writes the audit file; knows no transport.
"""

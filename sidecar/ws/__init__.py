"""The WebSocket edge: handshake, frames, one writer a socket, close codes.

May import core and security, storage, cluster; never rpc or ops.
"""

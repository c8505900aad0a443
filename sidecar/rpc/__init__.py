"""The gRPC edge: services, token checks, the error table. Protobuf types live here and nowhere else.

May import core and security, storage, cluster; never ws or ops.
"""

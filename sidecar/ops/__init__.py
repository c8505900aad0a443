"""The operations edge: health, readiness and, in development, the demo page.

May import core and security, storage, cluster; never ws or rpc.
"""

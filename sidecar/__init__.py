"""ws-sidecar: one isolated manager for each WebSocket connection context, reached over gRPC.

`sidecar.api` is a distribution of its own (ws-sidecar-api) and may be installed elsewhere: the path takes it in.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"

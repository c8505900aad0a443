"""Serves the example on loopback: `python examples/http_python [PORT]`; prints where."""

import logging
import socket
import sys

import uvicorn
from service import app  # type: ignore[import-not-found] # beside this file

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
with socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000)) as listener:
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])

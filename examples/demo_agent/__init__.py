"""The demo agent: an ordinary HTTP service that reaches its users through the sidecar. Run the folder itself."""

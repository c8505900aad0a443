"""The Python client's conformance runner: one command a line on its input, what came of it on its output."""

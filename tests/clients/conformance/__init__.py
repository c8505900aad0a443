"""Plays the conformance list (clients/conformance) with the runner of any client, against real sidecars."""

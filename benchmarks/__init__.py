"""What the sidecar costs beside the bare libraries: driven from outside, as a process, with generated stubs alone."""

"""Jobs on a Ray cluster: packed here, run and followed there."""

"""Places that all machines reach: an object store, or a shared folder."""

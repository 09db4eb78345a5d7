"""The study: one question a file, with what was expected before anything was run."""

"""What a trial writes down while it runs, and how others read from it where the trial is."""

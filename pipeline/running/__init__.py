"""Which trials run where and when: Ray, and the terminal that shows it."""

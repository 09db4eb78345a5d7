"""What the numbers of a sweep say: tables, figures, words."""

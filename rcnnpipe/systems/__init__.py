"""One short file per paper: an arrangement of the same parts."""

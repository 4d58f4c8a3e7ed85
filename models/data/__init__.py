"""Data sets: what comes in (folders, archives, arrays, pictures), and how an image is preprocessed."""

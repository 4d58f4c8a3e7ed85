"""Data sets from folders, archives, arrays and pictures, and the preprocessing of images."""

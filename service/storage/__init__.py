"""Where uploaded and finished files lie: a folder, or a bucket."""

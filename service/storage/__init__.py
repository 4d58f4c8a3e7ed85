"""Storage of uploaded files and finished artifacts: in a local folder, or in a bucket."""

"""One file per change; a file that has been released is never edited."""

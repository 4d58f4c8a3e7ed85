"""Models, data sets and device profiles of users, and the limits on time and disk space for which they are kept."""

"""What several tests use: small networks, running servers, examples."""

"""What models answer while heads are removed."""

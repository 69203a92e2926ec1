"""What the paper claims, what decides it, what was found."""

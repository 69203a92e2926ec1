"""What every run needs: files that last, parameters, processes."""

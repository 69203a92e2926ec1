"""From head tables to numbers with intervals."""

"""Models that Mipgate brings along, each one `ModelSpec` in a file of its own."""

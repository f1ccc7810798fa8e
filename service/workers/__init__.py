"""The workers of one gateway: how many there are, what they share, who takes a connection."""

"""`ld3m auto`: own images in, the best set of a given time out. How sets are made and measured lives below it."""

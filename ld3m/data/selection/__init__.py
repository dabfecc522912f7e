"""Judges of real images, and the real images that they choose: core-sets and mosaics."""

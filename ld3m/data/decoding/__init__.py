"""Image files of all kinds, and the uint8 pixels that they become."""

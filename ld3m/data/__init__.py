"""Real images: their sources, their classes, and their prepared form on disk. How networks see them is `images`."""

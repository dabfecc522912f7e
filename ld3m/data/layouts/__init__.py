"""Folders, tars and lists as people have them: where the images are, of which class and split."""

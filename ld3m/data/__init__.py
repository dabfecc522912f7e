"""Real images: where they come from, their classes, their prepared form on disk, and the best of them.

From a source to prepared images: `sources` opens what `data.source` says (`folders`, `tables`, or one of `known`);
`layouts` finds its files and `decoding` reads them; `preparation` writes prepared images, `prepared` reads them, and
`selection` chooses among them. What networks do to images (augment, resize, pack) is in `images`.
"""

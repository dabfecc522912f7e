"""Images as tensors or pictures: augmented, resized, put side by side. Where real images come from is `data`."""

"""Runs: the loop that optimises latents, and what stands around it. Networks trained on the result are `evaluation`."""

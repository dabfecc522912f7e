"""Uploads a run to the Hugging Face Hub, with its card. Downloads are in `runs.download`."""

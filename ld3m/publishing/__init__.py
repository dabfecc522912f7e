"""Uploads a run to the Hugging Face Hub, with its card, or writes it as other projects read it.

Downloads and imports are in `runs`.
"""

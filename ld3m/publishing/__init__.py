"""A run on the Hugging Face Hub: the push and its card. What comes back from there is `runs.download`."""

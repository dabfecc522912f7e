"""A run for people to look at: its status, its page, its charts. Nothing here changes a run."""

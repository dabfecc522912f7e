"""A run as people look at it: its status, its web page, charts. Nothing here changes a run or measures anything."""

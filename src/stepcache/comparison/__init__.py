"""What `stepcache compare` does: its runs, their drift, summaries, page and contact sheet."""

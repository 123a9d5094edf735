"""`stepcache compare`: its runs, their drift, its page."""

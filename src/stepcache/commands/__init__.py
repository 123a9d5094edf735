"""The `stepcache` command, one file a subcommand."""

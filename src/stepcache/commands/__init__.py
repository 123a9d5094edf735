"""The subcommands of `stepcache`, a file each, and what they share: arguments, loading, quiet, signals, threads."""

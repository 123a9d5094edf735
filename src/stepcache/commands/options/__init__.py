"""The options of the subcommands, a file each. They import no torch, so that `--help` answers at once."""

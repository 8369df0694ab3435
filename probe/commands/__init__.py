"""The subcommands, one per file; each imports what is heavy by itself, so that help is fast."""

"""One question per file, found through the entry point group `mesaprobe.analyses`."""

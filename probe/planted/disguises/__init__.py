"""What hides a construction and keeps its algorithm, one disguise per file."""

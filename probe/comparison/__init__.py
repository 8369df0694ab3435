"""Models side by side: on the same sequences where they can be, and named where they cannot."""

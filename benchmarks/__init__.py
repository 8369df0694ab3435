"""Speed side by side with named peers; every line is a ratio measured in one run."""

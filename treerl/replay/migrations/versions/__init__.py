"""One file a revision, numbered in order; frozen once released."""

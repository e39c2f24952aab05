"""What a search looks like: plain views of stored trees (model) and rich renderables (render)."""

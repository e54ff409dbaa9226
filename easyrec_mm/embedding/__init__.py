"""Pictures of all items to vectors in a store."""

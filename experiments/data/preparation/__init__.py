"""From a source's documents to shards of tokens on disk."""

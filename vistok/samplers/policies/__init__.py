"""Tree policies: which nodes of a draft are worth proposing."""

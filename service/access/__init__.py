"""Who may do what: API keys and their roles, tokens of an OpenID provider, rates, the rules without a key."""

"""What was built and how good it is: specs, the catalog, runtimes, scorecards, profiles and the CLI."""

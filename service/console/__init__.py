"""The web page at `/console` for the people who operate the gateway: its files, and the routes of them."""

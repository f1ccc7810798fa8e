"""How the tables became what they are; alembic runs these at start."""

"""What alembic runs for each upgrade: our tables, on the connection that the database hands over."""

from __future__ import annotations

from alembic import context

from service.state.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()

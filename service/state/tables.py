"""Every table of the database. A change here comes with a revision in `migrations/versions`.

Times are seconds of Unix time. Documents are JSON, written and read by the room that they belong to.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from service.protocol import MAX_ID_LENGTH

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

EVERY_TIER = ""

# SQLite counts rows up by itself only in a column of its own integer type.
_COUNTER = BigInteger().with_variant(Integer, "sqlite")

# One experiment; `version` counts its changes, and a writer names the version that it read.
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(255), nullable=False),
    Column("tier", String(255), nullable=False),  # EVERY_TIER for one that is not limited to a tier
    Column("phase", String(32), nullable=False),
    Column("ended", Boolean, nullable=False, server_default=false()),
    Column("version", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("document", JSON, nullable=False),
)
Index(
    "uq_rollouts_running",
    rollouts.c.model,
    rollouts.c.tier,
    unique=True,
    sqlite_where=text("NOT ended"),
    postgresql_where=text("NOT ended"),
)

# One line per version of a rollout, written in the transaction that made it; never changed.
rollout_history = Table(
    "rollout_history",
    metadata,
    Column("id", _COUNTER, primary_key=True),
    Column("rollout", String(32), ForeignKey("rollouts.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("phase", String(32), nullable=False),
    Column("who", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("weights", JSON, nullable=False),
    Column("figures", JSON, nullable=False),
    UniqueConstraint("rollout", "version"),
)

# What workers observed: increments, which the holder of the lease adds up into one row per arm.
evidence = Table(
    "evidence",
    metadata,
    Column("id", _COUNTER, primary_key=True),
    Column("rollout", String(32), nullable=False, index=True),
    Column("arm", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("document", JSON, nullable=False),
)

# The last batch that each worker wrote: a batch whose outcome was unknown is not written twice.
writers = Table(
    "writers",
    metadata,
    Column("worker", String(64), primary_key=True),
    Column("batch", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)

# Who does what only one may do. The token grows with each holder: a late write of an earlier one is refused.
leases = Table(
    "leases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires", Double, nullable=False),
)

# Answered requests whose label may still come, each joined once.
served = Table(
    "served",
    metadata,
    Column("request", String(MAX_ID_LENGTH), primary_key=True),
    Column("model", String(255), nullable=False),
    Column("variant", String(255), nullable=False),
    Column("tier", String(255), nullable=False),
    Column("rollout", String(32), nullable=False),
    Column("arm", String(64), nullable=False),
    Column("prediction", JSON, nullable=False),
    Column("at", Double, nullable=False, index=True),
    Column("judged", Boolean, nullable=False, server_default=false()),
)

# What the gateways of this database know and nobody else: whoever reads it can write labels.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(128), nullable=False),
)

# Work for a builder. `expires` is its lease: one whose builder died is taken over.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("model", String(255), nullable=False, index=True),
    Column("arguments", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("phrase", Text, nullable=False, server_default=""),
    Column("fraction", Double, nullable=False, server_default="0"),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("error", Text),
    Column("result", JSON),
    Column("cancelling", Boolean, nullable=False, server_default=false()),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("holder", String(64), nullable=False, server_default=""),
    Column("expires", Double, nullable=False, server_default="0"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("hash", String(128), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    Column("rate_per_s", Double),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("parent", String(32)),  # of a console's session: the key that it came from, and ends with
    Column("revoked", Double),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _COUNTER, primary_key=True),
    Column("at", Double, nullable=False, index=True),
    Column("who", String(255), nullable=False),
    Column("what", String(64), nullable=False),
    Column("target", String(255), nullable=False),
    Column("before", JSON),
    Column("after", JSON),
)

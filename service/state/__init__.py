"""What outlives a worker and is shared by all: rollouts, evidence, jobs, keys and audit, in a database."""

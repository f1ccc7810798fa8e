"""All dashboards."""

from deploy.grafana.capacity import CAPACITY
from deploy.grafana.overview import OVERVIEW
from deploy.grafana.rollout import ROLLOUT
from deploy.grafana.variants import VARIANTS

BOARDS = (OVERVIEW, VARIANTS, ROLLOUT, CAPACITY)

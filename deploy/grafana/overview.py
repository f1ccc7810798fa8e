"""The dashboard Overview: whether callers get what they ask for."""

from __future__ import annotations

from deploy.grafana.board import Board, Limits, M, Panel, Query, quantile, rate, share

_ALL = f'mipgate_requests_total{{{M}, outcome!="client_error"}}'
_BAD = f'mipgate_requests_total{{{M}, outcome=~"rejected|late|failed"}}'
_BUDGET = "(1 - scalar(mipgate:slo_objective:ratio))"

OVERVIEW = Board(
    "mipgate-overview",
    "Mipgate: Overview",
    "Whether callers get what they ask for.",
    (
        Panel(
            "number",
            "Requests",
            "Inference requests per second, however they end.",
            "reqps",
            (Query(rate(f"mipgate_requests_total{{{M}}}"), "requests"),),
            width=4,
        ),
        Panel(
            "number",
            "Answered in time",
            "Share of the requests, client errors aside, that were answered within their deadline.",
            "percentunit",
            (Query(f"1 - {share(_BAD, _ALL)}", "in time"),),
            Limits(0.999, 0.995, less_is_worse=True),
            4,
        ),
        Panel(
            "number",
            "Error budget left",
            "What is left of the errors that the objective allows, over the time that is shown. "
            "Below 0 the objective is missed.",
            "percentunit",
            (
                Query(
                    f"1 - (sum(increase({_BAD}[$__range])) or vector(0)) "
                    f"/ (sum(increase({_ALL}[$__range])) > 0) / {_BUDGET}",
                    "budget left",
                ),
            ),
            Limits(0.5, 0.0, less_is_worse=True),
            4,
        ),
        Panel(
            "number",
            "Alerts",
            "Alerts that fire now; Prometheus lists them, docs/operations.md explains them.",
            "none",
            (Query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),),
            Limits(1, 1),
            4,
        ),
        Panel(
            "number",
            "Workers",
            "Workers that live, over all gateways.",
            "none",
            (Query("count(mipgate_worker_start_time_seconds)", "workers"),),
            Limits(None, 1, less_is_worse=True),
            4,
        ),
        Panel(
            "number",
            "In flight",
            "Requests that arrived and are not answered yet.",
            "none",
            (Query(f"sum(mipgate_inflight_requests{{{M}}})", "in flight"),),
            width=4,
        ),
        Panel(
            "lines",
            "Traffic by tier",
            "Requests per second that asked for each tier.",
            "reqps",
            (Query(rate(f"mipgate_requests_total{{{M}}}", "tier"), "{{tier}}"),),
            width=12,
        ),
        Panel(
            "stack",
            "Outcomes",
            "How requests end. `late`: the deadline passed after they were accepted; `rejected`: refused "
            "without being run.",
            "reqps",
            (Query(rate(f"mipgate_requests_total{{{M}}}", "outcome"), "{{outcome}}"),),
            width=12,
        ),
        Panel(
            "lines",
            "Latency by tier",
            "Time from arrival to answer, of requests that were answered in time.",
            "s",
            tuple(
                Query(quantile(q, "mipgate_request_duration_seconds", "tier"), f"{{{{tier}}}} p{q * 100:g}")
                for q in (0.5, 0.95, 0.99)
            ),
            Limits(0.1, 0.5),
            12,
        ),
        Panel(
            "lines",
            "Deadlines missed",
            "Share of the requests of a tier that were accepted and then not answered in time: "
            "predictions are wrong.",
            "percentunit",
            (
                Query(
                    share(
                        f"mipgate_deadline_missed_total{{{M}}}",
                        f'mipgate_requests_total{{{M}, outcome!="client_error"}}',
                        "tier",
                    ),
                    "{{tier}}",
                ),
            ),
            Limits(0.01, 0.05),
            12,
        ),
        Panel(
            "lines",
            "Burn rate",
            "How many times faster than allowed errors happen. 1 spends the budget exactly in 30 days; "
            "at 14.4 over an hour somebody is woken.",
            "none",
            (
                Query(f"model:mipgate_slo_errors:ratio_rate5m{{{M}}} / {_BUDGET}", "{{model}} 5 min"),
                Query(f"model:mipgate_slo_errors:ratio_rate1h{{{M}}} / {_BUDGET}", "{{model}} 1 h"),
            ),
            Limits(6, 14.4),
            24,
        ),
    ),
)

"""The dashboard Capacity: how full the gateways are."""

from __future__ import annotations

from deploy.grafana.board import Board, Limits, M, Panel, Query, quantile, rate, share

CAPACITY = Board(
    "mipgate-capacity",
    "Mipgate: Capacity",
    "How full the gateways are, and what they refuse or degrade because of it.",
    (
        Panel(
            "lines",
            "Utilisation",
            "Seconds of batches per second and worker. Above 0.6 waiting grows faster than traffic.",
            "percentunit",
            (
                Query(
                    f"{rate('mipgate_inference_duration_seconds_sum', 'instance')} "
                    "/ count by (instance) (mipgate_worker_start_time_seconds)",
                    "{{instance}}",
                ),
            ),
            Limits(0.6, 0.85),
        ),
        Panel(
            "lines",
            "Queues",
            "Requests that wait now.",
            "none",
            (Query(f"sum by (model, variant) (mipgate_queue_depth{{{M}}})", "{{model}}/{{variant}}"),),
            Limits(512, 819),
        ),
        Panel(
            "lines",
            "Saturation of queues",
            "Waiting requests over those that may wait; at 1 requests get 503.",
            "percentunit",
            (
                Query(
                    f"max by (instance, model, variant) "
                    f"(instance_model_variant:mipgate_queue:saturation{{{M}}})",
                    "{{instance}} {{model}}/{{variant}}",
                ),
            ),
            Limits(0.5, 0.8),
        ),
        Panel(
            "lines",
            "Time in the queue",
            "Time that a request waited for its batch, 99th percentile.",
            "s",
            (
                Query(
                    quantile(0.99, "mipgate_queue_duration_seconds", "model, variant"),
                    "{{model}}/{{variant}} p99",
                ),
            ),
            Limits(0.05, 0.2),
        ),
        Panel(
            "lines",
            "Rows in a batch",
            "Mean rows of the batches that ran: near 1 under load, batching does not help.",
            "none",
            (
                Query(
                    f"{rate(f'mipgate_batch_size_sum{{{M}}}', 'model, variant')} "
                    f"/ ({rate(f'mipgate_batch_size_count{{{M}}}', 'model, variant')} > 0)",
                    "{{model}}/{{variant}}",
                ),
            ),
        ),
        Panel(
            "lines",
            "Rows per second",
            "Rows that ran.",
            "rowsps",
            (Query(rate(f"mipgate_batch_size_sum{{{M}}}", "model, variant"), "{{model}}/{{variant}}"),),
        ),
        Panel(
            "stack",
            "Rejected",
            "Requests per second that were refused without being run, by reason.",
            "reqps",
            (Query(rate(f"mipgate_rejected_total{{{M}}}", "reason"), "{{reason}}"),),
            Limits(1, 10),
        ),
        Panel(
            "lines",
            "Degraded",
            "Share of the answers that are below the asked quality, as those requests allowed.",
            "percentunit",
            (
                Query(
                    share(
                        f"mipgate_degraded_total{{{M}}}",
                        f'mipgate_requests_total{{{M}, outcome="ok"}}',
                        "model",
                    ),
                    "{{model}}",
                ),
            ),
            Limits(0.05, 0.2),
        ),
        Panel(
            "lines",
            "Breakers open",
            "Workers that keep requests from a variant because it fails.",
            "none",
            (Query(f"sum by (model, variant) (mipgate_breaker_open{{{M}}})", "{{model}}/{{variant}}"),),
            Limits(1, 1),
            scripted=True,
        ),
        Panel(
            "lines",
            "Starts of workers",
            "How often workers were started anew over the time that is shown.",
            "none",
            (
                Query(
                    "sum by (instance) (changes(mipgate_worker_start_time_seconds[$__range]))", "{{instance}}"
                ),
            ),
            Limits(1, 3),
        ),
    ),
)

"""The dashboard Variants: how good and how fast each variant is."""

from __future__ import annotations

from deploy.grafana.board import Board, Limits, M, Panel, Query, per_variant, quantile, rate, share

_ANSWERS = f'mipgate_requests_total{{{M}, outcome="ok"}}'
_QUALITY = Query(per_variant(f"mipgate_variant_quality_ratio{{{M}}}"), "quality ratio", "percentunit")


def _latency(quantile: str, legend: str) -> Query:
    series = f'mipgate_variant_latency_seconds{{{M}, quantile="{quantile}"}}'
    return Query(per_variant(series), legend, "s")


VARIANTS = Board(
    "mipgate-variants",
    "Mipgate: Variants",
    "How good and how fast each variant is: as profiled, and as it runs now.",
    (
        Panel(
            "points",
            "Frontier",
            "Each point is a variant: the profiled time of one row, and its validation quality over the "
            "reference's. Up and to the left is better.",
            "percentunit",
            (_latency("0.5", "time of one row"), _QUALITY),
            Limits(0.99, 0.97, less_is_worse=True),
            12,
        ),
        Panel(
            "table",
            "Variants",
            "What the catalog says of each variant on this host.",
            "none",
            (
                _QUALITY,
                _latency("0.5", "p50"),
                _latency("0.99", "p99"),
                Query(per_variant(f"mipgate_variant_size_bytes{{{M}}}"), "bytes", "bytes"),
                Query(per_variant(f"mipgate_profile_age_seconds{{{M}}}"), "profile age", "s"),
            ),
            width=12,
        ),
        Panel(
            "stack",
            "Traffic share",
            "Share of the answers that each variant gives.",
            "percentunit",
            (
                Query(
                    f"{rate(_ANSWERS, 'variant')} / ignoring (variant) group_left () ({rate(_ANSWERS)} > 0)",
                    "{{variant}}",
                ),
            ),
        ),
        Panel(
            "lines",
            "Latency of answers",
            "Time from arrival to answer, 99th percentile.",
            "s",
            (Query(quantile(0.99, "mipgate_request_duration_seconds", "variant"), "{{variant}} p99"),),
            Limits(0.1, 0.5),
        ),
        Panel(
            "lines",
            "Time of a batch",
            "Time that a batch ran, median and 99th percentile.",
            "s",
            tuple(
                Query(
                    quantile(q, "mipgate_inference_duration_seconds", "variant"),
                    f"{{{{variant}}}} p{q * 100:g}",
                )
                for q in (0.5, 0.99)
            ),
            Limits(0.1, 0.5),
        ),
        Panel(
            "lines",
            "Quality by feedback",
            "Share of the answers that delayed labels confirm.",
            "percentunit",
            (
                Query(
                    share(
                        f'mipgate_feedback_total{{{M}, correct="true"}}',
                        f"mipgate_feedback_total{{{M}}}",
                        "variant",
                    ),
                    "{{variant}}",
                ),
            ),
            Limits(0.97, 0.9, less_is_worse=True),
            scripted=True,
        ),
        Panel(
            "bars",
            "Size",
            "Size of the model file.",
            "bytes",
            (Query(f"max by (model, variant) (mipgate_variant_size_bytes{{{M}}})", "{{model}}/{{variant}}"),),
        ),
        Panel(
            "names",
            "State",
            "The state that each variant is in: serving, dominated, refused (it may not serve here), "
            "failed, skipped.",
            "none",
            (
                Query(
                    f"max by (model, variant, state) (mipgate_variant_state{{{M}}}) == 1",
                    "{{model}}/{{variant}}: {{state}}",
                ),
            ),
        ),
        Panel(
            "lines",
            "Drift",
            "Population stability index of sampled inputs, predictions and confidence against the "
            "calibration split. Above 0.2 the traffic is another one.",
            "none",
            (Query(f"max by (model, signal) (mipgate_drift_score{{{M}}})", "{{model}} {{signal}}"),),
            Limits(0.1, 0.2),
            scripted=True,
        ),
        Panel(
            "lines",
            "Builds",
            "Build jobs by how they ended, over the time that is shown.",
            "none",
            (
                Query(
                    f"sum by (model, outcome) (increase(mipgate_builds_total{{{M}}}[$__range]))",
                    "{{model}} {{outcome}}",
                ),
            ),
            scripted=True,
            width=12,
        ),
        Panel(
            "lines",
            "Time of builds",
            "Time that build jobs took, median over the time that is shown.",
            "s",
            (
                Query(
                    "histogram_quantile(0.5, sum by (model, le) "
                    f"(increase(mipgate_build_duration_seconds_bucket{{{M}}}[$__range])))",
                    "{{model}}",
                ),
            ),
            Limits(3600, 14400),
            scripted=True,
            width=12,
        ),
    ),
)
